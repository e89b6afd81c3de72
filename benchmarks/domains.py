"""Writes hospitals of different domains, each with classes of its own: two of medicine, eight of handwriting.

    python benchmarks/domains.py FOLDER [--data ../shared/data]

`breast`: 780 ultrasound images of 3 classes (BUSI). `pneumonia`: 600 children's chest radiographs of 2
classes, drawn at random from the reconstructed PneumoniaMNIST. Every alphabet of Omniglot's two small
background sets: its characters are the classes, 20 drawings each. Every image counts as a patient's. Of a
character, people 1 to 10 are on the adaptation side and 11 to 20 on the test side; the hospitals' patients
are split at random. Omniglot's own names are kept: `character07` is another one in each alphabet.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omniglot import ARCHIVES, DEFAULT
from PIL import Image
from tree import plant

ULTRASOUND = Path("breast_ultrasound_64", "busi_64_gray.npz")
CHESTS = Path("pneumonia_28", "pneumonia_28.npz")
DRAWINGS = [Path("omniglot_small", archive) for archive in ARCHIVES]
BREAST = ("no lesion", "benign", "malignant")
PNEUMONIA = ("no pneumonia", "pneumonia")
RADIOGRAPHS = 600
"""Radiographs that are drawn, so that one domain is about as large as the next."""
LEARNED = 10
"""People whose drawings are on the adaptation side."""
Row = dict[str, str]


def breast(data: Path, folder: Path) -> Iterator[Row]:
    """Write the ultrasound images into `folder`; yield their rows."""
    with np.load(data / ULTRASOUND, allow_pickle=False) as stored:
        for number, (image, label) in enumerate(zip(stored["images"], stored["label"], strict=True)):
            yield _row(folder, "breast", f"{number:04}", Image.fromarray(image), BREAST[label])


def pneumonia(data: Path, folder: Path) -> Iterator[Row]:
    """Write some radiographs of all three of the collection's sides into `folder`; yield their rows."""
    sides = ("train", "val", "test")
    with np.load(data / CHESTS, allow_pickle=False) as stored:
        images = np.concatenate([stored[f"{side}_images"] for side in sides])
        labels = np.concatenate([stored[f"{side}_labels"] for side in sides])[:, 0]
    for place in sorted(np.random.default_rng(0).permutation(len(images))[:RADIOGRAPHS]):
        image = Image.fromarray(images[place])
        yield _row(folder, "pneumonia", f"{place:04}", image, PNEUMONIA[labels[place]])


def alphabets(data: Path, folder: Path) -> Iterator[Row]:
    """Write the drawings, white on black as a radiograph is, into `folder`; yield their rows.

    One alphabet is in both archives, drawing for drawing.
    """
    seen: set[str] = set()
    for archive in DRAWINGS:
        with zipfile.ZipFile(data / archive) as file:
            for name in sorted(file.namelist()):
                _, _, inside = name.partition("/")
                if not name.endswith(".png") or inside in seen:
                    continue
                seen.add(inside)
                alphabet, character, drawing = inside.split("/")
                with file.open(name) as opened, Image.open(opened) as image:
                    ink = image.convert("L").point(lambda value: 255 - value)
                person = int(Path(drawing).stem.rpartition("_")[2])
                side = "adaptation" if person <= LEARNED else "test"
                site = alphabet.partition("_(")[0].lower().replace("_", "-")
                yield _row(folder, site, f"{character}-{person:02}", ink, character) | {"split": side}


def _row(folder: Path, site: str, name: str, image: Image.Image, label: str) -> Row:
    file = f"{site}-{name}.png"
    image.save(folder / file)
    return {"image": file, "site": site, "finding": label, "split": ""}


def main() -> None:
    """Write the hospitals and name them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the hospitals' folders go")
    parser.add_argument("--data", type=Path, default=DEFAULT.parent, help="folder of the three collections")
    given = parser.parse_args()
    for file in (ULTRASOUND, CHESTS, *DRAWINGS):
        if not (given.data / file).is_file():
            parser.error(f"{given.data / file} is not there; name the folder of the collections with --data")
    source = given.folder.with_name(f"{given.folder.name}-images")
    source.mkdir(parents=True)
    rows = [row for domain in (breast, pneumonia, alphabets) for row in domain(given.data, source)]
    plant(rows, source, given.folder, labels=["finding", "split"])


if __name__ == "__main__":
    main()
