"""Images per second from DICOM files to tensors, against bare `dcmread(path).pixel_array` in the same run.

    python benchmarks/dicom.py [--quick]

First pass: open a hospital that was never opened (find, check, decode, map, resample, cache), as it is done,
with a child process for each processor, and without any. Cached: open it again and touch every row. The sides
take turns, each ratio a median of wall times; bare reads one file after the other. The processor ratio counts
parent and children together: what the first pass comes to where nothing runs beside it.
The last line is one JSON object; a ratio above 1 is faster than bare.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from client.dataset import open_hospital
from client.image_child import ImagesHere
from common.sections import Data, Task

SYNTAXES = {
    "uncompressed": (uid.ExplicitVRLittleEndian, 300),
    "rle": (uid.RLELossless, 60),
    "jpeg2000": (uid.JPEG2000Lossless, 20),
    "jpeg": (uid.JPEGBaseline8Bit, 100),
}
"""Per transfer syntax, how many images a round of --quick reads: as many as take about a second at most."""

MATRIX = 512
DATA, TASK = Data(), Task(label="finding", classes=("normal", "nodule"))


def chest_like(generator: np.random.Generator, bits: int) -> NDArray[np.uint16]:
    """Return smooth anatomy-sized blobs plus detector noise, `bits` deep: it compresses as radiographs do."""
    y, x = np.mgrid[-1 : 1 : MATRIX * 1j, -1 : 1 : MATRIX * 1j]
    lungs = sum(np.exp(-(((x - side) / 0.3) ** 2 + (y / 0.6) ** 2)) for side in (-0.45, 0.45))
    ribs = 0.05 * np.cos(25 * (y + 0.3 * x**2))
    image: NDArray[np.float64] = 0.75 - 0.5 * lungs + ribs + generator.normal(0, 0.01, (MATRIX, MATRIX))
    scaled: NDArray[np.uint16] = (image.clip(0, 1) * (2**bits - 1)).astype(np.uint16)
    return scaled


def write(path: Path, number: int, syntax: uid.UID, generator: np.random.Generator) -> None:
    """Write one digital radiograph with a linear window."""
    bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
    pixels = chest_like(generator, bits)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = uid.generate_uid()
    dataset.StudyInstanceUID = uid.generate_uid()
    dataset.PatientID = f"P{number}"
    dataset.Rows = dataset.Columns = MATRIX
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (8 if bits == 8 else 16), bits, bits - 1
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
    dataset.PixelData = pixels.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax == uid.RLELossless:
        dataset.compress(syntax)
    elif syntax.is_encapsulated:
        dataset.PixelData = encapsulate([_encoded(pixels, syntax)])
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)


def hospital(folder: Path, syntax: uid.UID, images: int) -> list[Path]:
    """Write a hospital of `images` patients and return its files."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:04d}.dcm" for number in range(images)]
    for number, path in enumerate(paths):
        write(path, number, syntax, generator)
    rows = "".join(f"{path.name},{TASK.classes[number % 2]}\n" for number, path in enumerate(paths))
    (folder / "labels.csv").write_text("path,finding\n" + rows)
    return paths


def measure(folder: Path, paths: list[Path], rounds: int) -> dict[str, float]:
    """Return images per second bare, the median ratios to it, and what children add to an image."""
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in ("bare", "first", "here", "cached")}
    for _ in range(rounds):
        taken["bare"].append(_seconds(lambda: [dcmread(path).pixel_array for path in paths]))
        with patch("client.folder.image_reader", ImagesHere):
            taken["here"].append(_seconds(lambda: _first(folder)))
        taken["first"].append(_seconds(lambda: _first(folder)))
        taken["cached"].append(_seconds(lambda: _touch(folder)))
    wall = {side: [seconds for seconds, _ in times] for side, times in taken.items()}
    processor = {side: [seconds for _, seconds in times] for side, times in taken.items()}
    added = statistics.median(f - h for f, h in zip(wall["first"], wall["here"], strict=True))
    return {
        "bare_per_second": len(paths) / statistics.median(wall["bare"]),
        "first_pass_ratio": _ratio(wall["bare"], wall["first"]),
        "without_child_ratio": _ratio(wall["bare"], wall["here"]),
        "child_ms": 1000 * added / len(paths),
        "processor_ratio": _ratio(processor["bare"], processor["first"]),
        "cached_ratio": _ratio(wall["bare"], wall["cached"]),
    }


def main() -> None:
    """Write the hospitals, measure each, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds, under 40 seconds")
    quick = parser.parse_args().quick
    scale, rounds = (1, 4) if quick else (3, 9)
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (syntax, images) in SYNTAXES.items():
            site = Path(folder) / name
            paths = hospital(site, syntax, scale * images)
            measured = measure(site, paths, rounds)
            print(f"{name:>14} " + "  ".join(f"{key} {value:9.2f}" for key, value in measured.items()))
            figures |= {f"{key}_{name}": round(value, 3) for key, value in measured.items()}
    for key in ("first_pass_ratio", "without_child_ratio", "processor_ratio", "cached_ratio"):
        figures[key] = min(figures[f"{key}_{name}"] for name in SYNTAXES)
    print(json.dumps(figures))


def _encoded(pixels: NDArray[np.uint16], syntax: uid.UID) -> bytes:
    stream = io.BytesIO()
    if syntax == uid.JPEG2000Lossless:
        Image.fromarray(pixels).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _touch(folder: Path) -> float:
    opened = open_hospital(folder, DATA, TASK)
    return sum(float(case.sum()) for side in (opened.adaptation, opened.test) for case in side.inputs)


def _first(folder: Path) -> None:
    shutil.rmtree(folder / ".zamenis", ignore_errors=True)
    open_hospital(folder, DATA, TASK)


def _ratio(bare: list[float], ours: list[float]) -> float:
    return statistics.median(b / o for b, o in zip(bare, ours, strict=True))


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall time, and the processor time of this process and of children that have ended."""
    start, before = time.perf_counter(), os.times()
    work()
    return time.perf_counter() - start, sum(os.times()[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
