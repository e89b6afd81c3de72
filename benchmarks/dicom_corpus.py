"""Public DICOM files that nobody here wrote: which are read, which refused and why, and if grey is right.

    python benchmarks/dicom_corpus.py [--differences]

Read are all files of pydicom's own tests and, where they are installed, of the packages pydicom-data and
deid-data (`pip install pydicom-data deid-data`), as `register` reads a folder. Every grey image that is
accepted is compared, pixel by pixel and before it is resampled, with what dcmtk shows (`apt-get install
dcmtk`): by VOI LUT, else by the first window, else by the image's own range. A difference of more than one
grey level of 255 is explained by a second comparison, in which what differs by intention is alike, or it is
unexplained; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom.data
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread, uid
from rich.console import Console
from rich.progress import track
from rich.table import Table

from client.dicom import open_instance
from client.image_child import image_reader
from client.rendering import _padding
from common.errors import Refused

PACKAGES = {"pydicom-data": "data_store", "deid-data": "deid_data"}
"""Distribution and the module that holds its files."""
LEVEL = 1
"""Grey levels of 255 that rounding may cost."""
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
LARGEST = 4096
"""Rows or columns of the largest image that is compared."""
Levels = NDArray[np.float64]
"""`[row, column]` from 0 to 255."""
console = Console(highlight=False)


class NotComparable(Exception):  # noqa: N818 - a finding, not a failure
    """Why there is nothing to compare."""


def corpora() -> Iterator[tuple[str, list[Path]]]:
    """Yield the name of each set of files that is here, and the files."""
    yield "pydicom", _files(Path(pydicom.data.__file__).parent)
    for name, module in PACKAGES.items():
        found = find_spec(module)
        if found and found.submodule_search_locations:
            yield name, _files(Path(next(iter(found.submodule_search_locations))))
        else:
            console.print(f"{name} is not installed: pip install {name}")


def _files(folder: Path) -> list[Path]:
    python = {".py", ".pyc"}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in python)


def verdicts(files: Sequence[Path]) -> dict[Path, str]:
    """Return why each file is refused; nothing where it is accepted."""
    found = {}
    with image_reader() as images:
        for path in track(files, "Reading", console=console, transient=True):
            try:
                with images.open(path) as image:
                    image.pixels(size=64, channels=1)
                found[path] = ""
            except Refused as refusal:
                found[path] = str(refusal.reason)
    return found


def compared(path: Path, scratch: Path) -> str:
    """Return why a grey image differs from dcmtk's: empty where it does not, else perhaps `unexplained`.

    NotComparable: it is in colour, or dcmtk does not show it.
    """
    dataset = dcmread(path, force=True)
    if dataset.SamplesPerPixel > 1 or "PALETTE" in dataset.PhotometricInterpretation:
        raise NotComparable("in colour")
    if max(dataset.Rows, dataset.Columns) > LARGEST:
        raise NotComparable(f"larger than {LARGEST}")
    square = _squared(dataset, path, scratch)
    mine, theirs = _ours(square), _dcmtks(path, dataset, _mapping(dataset), scratch)
    if _alike(mine, theirs):
        return ""
    measured = np.ones(mine.shape, bool)
    padding = _padding_of(dataset)
    if padding is not None:
        measured = ~padding
        if _alike(mine[measured], theirs[measured]):
            return "padding is black here"
        window = _range_window(dataset)
        if window and _alike(mine[measured], _dcmtks(path, dataset, window, scratch)[measured]):
            return "padding does not count in the range here"
    if _alike(mine, 255 - theirs):
        return "the other polarity"
    decoded = scratch / "decoded.dcm"
    if _run("dcmdjpeg", square, decoded) and _alike(_ours(decoded), theirs):
        return "decoders round a lossy stream differently"
    return f"unexplained, by {np.abs(mine - theirs)[measured].max():.0f} levels"


def _squared(dataset: Dataset, path: Path, scratch: Path) -> Path:
    """Return a file of the same pixels, taken as square, so that nothing is resampled."""
    if not any(keyword in dataset for keyword in SPACINGS):
        return path
    for keyword in SPACINGS:
        if keyword in dataset:
            del dataset[keyword]
    copy = scratch / "square.dcm"
    dataset.save_as(copy)
    return copy


def _ours(path: Path) -> Levels:
    with open_instance(path) as image:
        rows, columns = image.shape
        size = max(rows, columns)
        pixels = image.pixels(size=size, channels=1)[0].numpy()
    top, left = (size - rows) // 2, (size - columns) // 2
    return 255.0 * pixels[top : top + rows, left : left + columns]


def _dcmtks(path: Path, dataset: Dataset, mapping: Sequence[str], scratch: Path) -> Levels:
    """Return the middle frame as dcmtk shows it."""
    frame = int(dataset.get("NumberOfFrames") or 1) // 2 + 1
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    tool = "dcml2pnm" if syntax in uid.JPEGLSTransferSyntaxes else "dcmj2pnm"
    shown = scratch / "shown.pgm"
    shown.unlink(missing_ok=True)
    words = ["+F", str(frame), "-O", "+Ma", *mapping]
    if not _run("dcm2img" if shutil.which("dcm2img") else tool, *words, path, shown):
        raise NotComparable("dcmtk does not show it")
    with Image.open(shown) as image:
        return np.asarray(image, np.float64)


def _run(tool: str, *words: str | Path) -> bool:
    done = subprocess.run([tool, *map(str, words)], capture_output=True, check=False, timeout=60)
    return done.returncode == 0 and Path(words[-1]).is_file()


def _mapping(dataset: Dataset) -> list[str]:
    """Return dcmtk's words for what is shown of the values."""
    if "VOILUTSequence" in dataset and "LUTData" in dataset.VOILUTSequence[0]:
        return ["+Wl", "1"]
    if dataset.get("WindowCenter") not in (None, "") and dataset.get("WindowWidth") not in (None, ""):
        return ["+Wi", "1"]
    return ["+Wm"]


def _padding_of(dataset: Dataset) -> NDArray[np.bool_] | None:
    """Return where the middle frame is padding; None where the file names none."""
    if "PixelPaddingValue" not in dataset:
        return None
    return _padding(_stored(dataset), dataset)


def _stored(dataset: Dataset) -> NDArray[np.integer]:
    frames = dataset.pixel_array
    return frames[len(frames) // 2] if int(dataset.get("NumberOfFrames") or 1) > 1 else frames


def _range_window(dataset: Dataset) -> list[str]:
    """Return dcmtk's words for the range of what is not padding; none where another mapping counts."""
    if _mapping(dataset) != ["+Wm"]:
        return []
    stored = _stored(dataset)
    values = stored[~_padding(stored, dataset)] * float(dataset.get("RescaleSlope") or 1)
    values = values + float(dataset.get("RescaleIntercept") or 0)
    low, high = float(values.min()), float(values.max())
    return ["+Ww", str((low + high + 1) / 2), str(high - low + 1)]


def _alike(mine: Levels, theirs: Levels) -> bool:
    return mine.shape == theirs.shape and bool((np.abs(mine - theirs) <= LEVEL + 0.5).all())


def main() -> int:
    """Read, compare, print two tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--differences", action="store_true", help="name each file that differs, and why")
    differences = parser.parse_args().differences
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {}
    grey: dict[str, list[str]] = defaultdict(list)
    for name, files in corpora():
        found = verdicts(files)
        counts[name] = Counter(reason or "accepted" for reason in found.values())
        if not shutil.which("dcmj2pnm"):
            console.print("dcmtk is not installed: apt-get install dcmtk")
            continue
        accepted = [path for path, reason in found.items() if not reason]
        with tempfile.TemporaryDirectory() as scratch:
            for path in track(accepted, "Comparing", console=console, transient=True):
                try:
                    why = compared(path, Path(scratch)) or "alike"
                except NotComparable as reason:
                    why = f"not compared: {reason}"
                grey[why].append(path.name)
    reasons = sorted(
        {reason for by in counts.values() for reason in by}, key=lambda one: (one != "accepted", one)
    )
    table = Table("", *counts, "all", box=None)
    for reason in [*reasons, "files"]:
        each = [by[reason] if reason != "files" else by.total() for by in counts.values()]
        table.add_row(reason, *map(str, each), str(sum(each)))
    console.print(table)
    shown = Table("accepted images, against dcmtk", "images", box=None)
    for why, names in sorted(grey.items()):
        shown.add_row(why, str(len(names)))
    console.print(shown)
    if differences:
        for why, names in sorted(grey.items()):
            if why != "alike" and "not compared" not in why:
                console.print(f"{why}: {', '.join(names)}")
    total = sum(counts.values(), Counter())
    print(
        json.dumps({"files": total.total(), "accepted": total["accepted"], "grey_alike": len(grey["alike"])})
    )
    return int(any(why.startswith("unexplained") for why in grey))


if __name__ == "__main__":
    sys.exit(main())
