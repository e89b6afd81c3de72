"""Damaged DICOM files at the door of `register`: each is read or refused, and none stops the pass.

    python benchmarks/fuzz_dicom.py [--count 3000] [--seed 0]

Files of every encoding that can be written here (native in either byte order, implicit, deflated, RLE, JPEG,
JPEG-LS, JPEG 2000; grey, signed, colour, palette, several frames, LUTs, padding) are damaged as disks, lines
and exports damage them, from the seed, and read in a limited child process as a hospital's are. Printed is
what became of them; the exit code is 1 unless none ended the pass, took more than 6 s of processor time or
1 GiB beside what the child takes anyway, or was accepted with values outside [0, 1].
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, Sequence, config, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from rich.console import Console
from rich.progress import track
from rich.table import Table

from client.image_child import MEMORY, SECONDS, ImageChild
from client.preflight import Reason
from common.errors import Refused

SIDE = 48
NUMBERS = (0, 1, 2, 3, 7, 8, 12, 16, 17, 31, 32, 64, 255, 256, 4096, 65535)
TEXTS = ("0", "-1", "1e308", "-1e308", "1e999", "nan", "inf", "1e-320", "", "1,5", "x", "1\\2\\3", "9" * 64)
WHOLE = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit"),
)
DECIMAL = (
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames", "PixelSpacing"),
    *("PixelAspectRatio", "SliceThickness", "InstanceNumber", "ImagePositionPatient"),
)
COLOURS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "?")
console = Console(highlight=False)
Damage = Callable[[bytes, random.Random], bytes]


def plain(pixels: NDArray[np.generic], **elements: object) -> Dataset:
    """Return an uncompressed image of `[(frame,) row, column(, 3)]`."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    image.SOPClassUID = uid.CTImageStorage
    image.SOPInstanceUID, image.StudyInstanceUID = "1.2.3.1", "1.2.3.2"
    image.PatientID = "P"
    colour = pixels.shape[-1] == 3
    image.Rows = image.Columns = SIDE
    image.SamplesPerPixel = 3 if colour else 1
    image.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        image.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    return image


def table(entries: int, bits: int) -> Dataset:
    """Return an item of a LUT sequence."""
    item = Dataset()
    item.LUTDescriptor = [entries, 0, bits]
    item.LUTData = np.linspace(0, 2**bits - 1, entries).astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


def originals() -> dict[str, bytes]:
    """Return a whole file of each kind, by name."""
    chance = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(SIDE), np.arange(SIDE))
    grey = (smooth * 2).astype(np.uint8)
    deep = (smooth * 40 + chance.integers(0, 9, smooth.shape)).astype(np.uint16)
    colour = np.stack([grey, grey[::-1], grey.T], axis=-1)
    window = {"WindowCenter": 100, "WindowWidth": 80}
    files = {
        "grey 8": plain(grey, **window),
        "grey 16": plain(deep, RescaleSlope="2", RescaleIntercept="-1024", PixelPaddingValue=0),
        "signed": plain(
            (deep.astype(np.int16) - 1000), WindowCenter=["40", "400"], WindowWidth=["80", "1500"]
        ),
        "frames": plain(np.stack([deep] * 3), NumberOfFrames=3),
        "colour": plain(colour),
        "modality LUT": plain(deep, ModalityLUTSequence=Sequence([table(4096, 16)])),
        "VOI LUT": plain(deep, VOILUTSequence=Sequence([table(4096, 12)])),
        "palette": plain(grey, PhotometricInterpretation="PALETTE COLOR"),
    }
    for name in ("Red", "Green", "Blue"):
        setattr(files["palette"], f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        data = np.linspace(0, 65535, 256).astype("<u2").tobytes()
        setattr(files["palette"], f"{name}PaletteColorLookupTableData", data)
    for name, syntax, of in (
        ("RLE", uid.RLELossless, "grey 16"),
        ("RLE colour", uid.RLELossless, "colour"),
        ("JPEG-LS", uid.JPEGLSLossless, "grey 16"),
        ("JPEG 2000", uid.JPEG2000Lossless, "grey 16"),
        ("JPEG 2000 colour", uid.JPEG2000Lossless, "colour"),
    ):
        files[name] = copy.deepcopy(files[of])
        files[name].compress(syntax, generate_instance_uid=False)
    for name, of, pixels in (("JPEG", "grey 8", grey), ("JPEG colour", "colour", colour)):
        files[name] = copy.deepcopy(files[of])
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG")
        files[name].PixelData = encapsulate([stream.getvalue()])
        files[name].file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
        if pixels is colour:
            files[name].PhotometricInterpretation = "YBR_FULL_422"
    for name, syntax in (
        ("implicit", uid.ImplicitVRLittleEndian),
        ("big-endian", uid.ExplicitVRBigEndian),
        ("deflated", uid.DeflatedExplicitVRLittleEndian),
    ):
        files[name] = copy.deepcopy(files["grey 16"])
        files[name].file_meta.TransferSyntaxUID = syntax
    return {name: written(one) for name, one in files.items()}


def written(image: Dataset) -> bytes:
    """Return a data set as a file, whatever it says."""
    file = io.BytesIO()
    big = image.file_meta.TransferSyntaxUID == uid.ExplicitVRBigEndian
    if big:
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def bits(content: bytes, chance: random.Random) -> bytes:
    """Turn single bits over."""
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 40)):
        changed[chance.randrange(132, len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, chance: random.Random) -> bytes:
    """Take a piece out."""
    at = chance.randrange(132, len(content))
    return content[:at] + content[at + chance.randrange(1, 400) :]


def end(content: bytes, chance: random.Random) -> bytes:
    """Lose the end."""
    return content[: chance.randrange(len(content))]


def double(content: bytes, chance: random.Random) -> bytes:
    """Repeat a piece."""
    at = chance.randrange(132, len(content))
    return content[:at] + content[at : at + chance.randrange(1, 400)] + content[at:]


def zeros(content: bytes, chance: random.Random) -> bytes:
    """Blank a piece, as a disk does."""
    at, length = chance.randrange(132, len(content)), chance.randrange(1, 600)
    return content[:at] + bytes(min(length, len(content) - at)) + content[at + length :]


def lengths(content: bytes, chance: random.Random) -> bytes:
    """Write a large number over four bytes, as over the length of an element or a segment of a stream."""
    at, value = chance.randrange(132, len(content) - 4), chance.choice((2**16, 2**24, 2**31, 2**32 - 1))
    return content[:at] + value.to_bytes(4, chance.choice(("little", "big"))) + content[at + 4 :]  # type: ignore[arg-type]


def header(content: bytes, chance: random.Random) -> bytes:
    """Say something else of the image in one to three elements."""
    image = dcmread(io.BytesIO(content))
    for _ in range(chance.randrange(1, 4)):
        kind = chance.choice(("whole", "decimal", "colour", "syntax", "gone"))
        if kind == "whole":
            setattr(image, chance.choice(WHOLE), chance.choice(NUMBERS))
        elif kind == "decimal":
            setattr(image, chance.choice(DECIMAL), chance.choice(TEXTS))
        elif kind == "colour":
            image.PhotometricInterpretation = chance.choice(COLOURS)
        elif kind == "syntax":
            image.file_meta.TransferSyntaxUID = chance.choice(uid.AllTransferSyntaxes)
        else:
            image.pop(chance.choice(list(image.keys())))
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=False, implicit_vr=False, little_endian=True)
    return file.getvalue()


DAMAGES: tuple[Damage, ...] = (bits, cut, end, double, zeros, lengths, header)


@dataclass
class Found:
    """What became of the files with one kind of damage."""

    outcomes: Counter[str] = field(default_factory=Counter)
    children: int = 0
    """Child processes that files brought down, or that were ended at a limit."""
    slowest: float = 0.0
    """Seconds of the child's processor time."""
    broken: list[str] = field(default_factory=list)
    """What must not happen."""


def attempt(images: ImageChild, path: Path, found: Found, name: str) -> None:
    """Read one damaged file."""
    child, before = images._child, _spent(images._child)
    try:
        with images.open(path) as image:
            pixels = image.pixels(size=32, channels=1)
        found.outcomes["accepted"] += 1
        if not (pixels.isfinite().all() and 0 <= float(pixels.min()) <= float(pixels.max()) <= 1):
            found.broken.append(f"{name}: values outside [0, 1]")
    except Refused as refusal:
        found.outcomes[str(Reason(refusal.reason))] += 1
    except Exception as error:
        found.broken.append(f"{name}: ended the pass with {type(error).__name__}")
    if child and not images._child:
        found.children += 1
    elif child:
        spent = _spent(images._child) - before
        found.slowest = max(found.slowest, spent)
        if spent > SECONDS + 1:
            found.broken.append(f"{name}: took {spent:.0f} s")
        if _peak(images._child) > MEMORY + 2**30:  # the process itself takes less than that
            found.broken.append(f"{name}: took {_peak(images._child) / 2**30:.1f} GiB")


def _spent(child: int) -> float:
    """Return a process's seconds of processor time so far."""
    if not child:
        return 0.0
    words = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _peak(child: int) -> int:
    lines = Path(f"/proc/{child}/status").read_text(encoding="ascii").splitlines()
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> int:
    """Damage, read, print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    config.settings.writing_validation_mode = config.IGNORE
    config.settings.reading_validation_mode = config.IGNORE
    wholes = list(originals().items())
    by_damage: dict[str, Found] = defaultdict(Found)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ImageChild() as images:
        path = Path(folder) / "file"
        for name, content in wholes:
            path.write_bytes(content)
            attempt(images, path, by_damage["none"], name)
        for number in track(range(chosen.count), "Reading", console=console, transient=True):
            chance = random.Random(f"{chosen.seed} {number}")  # noqa: S311 - not a secret
            name, content = wholes[number % len(wholes)]
            damage = chance.choice(DAMAGES)
            try:
                path.write_bytes(damage(content, chance))
            except Exception:  # pydicom cannot write what `header` made up
                path.write_bytes(bits(content, chance))
            attempt(images, path, by_damage[damage.__name__], f"{name}, mutant {number}")
    shown = Table("", *by_damage, box=None)
    for reason in ("accepted", *Reason):
        each = [one.outcomes[reason] for one in by_damage.values()]
        if any(each):
            shown.add_row(str(reason), *map(str, each))
    shown.add_row("children lost", *(str(one.children) for one in by_damage.values()))
    shown.add_row("slowest, s", *(f"{one.slowest:.2f}" for one in by_damage.values()))
    console.print(shown)
    broken = [words for one in by_damage.values() for words in one.broken]
    spent = time.monotonic() - begun
    console.print(
        f"{chosen.count} damaged files in {spent:.0f} s, seed {chosen.seed}: {len(broken)} broke a promise."
    )
    for words in broken:
        console.print(words, markup=False)
    figures = {
        "files": chosen.count,
        "broken": len(broken),
        "children_lost": sum(one.children for one in by_damage.values()),
        "slowest_s": max(one.slowest for one in by_damage.values()),
    }
    print(json.dumps(figures))
    return int(bool(broken) or by_damage["none"].outcomes["accepted"] < len(wholes))


if __name__ == "__main__":
    sys.exit(main())
