"""Writes the 28 fundus photographs of CHASE_DB1 as four hospitals with a simulated camera each.

    python benchmarks/cameras.py FOLDER [--data ../shared/data/retina_vessels_chase/chase_256.npz]

Every camera photographs both eyes of all 14 children. Children 1 to 8 are each hospital's adaptation side,
9 to 14 its test side, so that a test child is new to every training, whoever is held out. What differs from
camera to camera: colour balance, gamma, focus, vignetting, noise and field of view, which moves the mask too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from tree import plant

LEARNED = 8
"""Children of the adaptation side."""


@dataclass(frozen=True)
class Camera:
    """What a camera makes of a retina."""

    gains: tuple[float, float, float]
    gamma: float
    blur: float
    """Standard deviation in pixels."""
    vignette: float
    """Share of the light that is lost in a corner."""
    noise: float
    """Standard deviation in grey values."""
    field: float
    """Share of the photograph's width that it sees."""

    def shoot(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], chance: np.random.Generator
    ) -> tuple[Image.Image, Image.Image]:
        """Return the photograph and its mask."""
        size = len(image)
        cut = round(size * (1 - self.field) / 2)
        window = (cut, cut, size - cut, size - cut)
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(self.blur))
        seen = blurred.crop(window).resize((size, size), Image.Resampling.BICUBIC)
        where = Image.fromarray(mask * 255).crop(window).resize((size, size), Image.Resampling.NEAREST)
        light = (np.asarray(seen) / 255.0) ** self.gamma * np.array(self.gains)
        place = np.linspace(-1, 1, size)
        light *= 1 - self.vignette * (place[:, None, None] ** 2 + place[None, :, None] ** 2) / 2
        values = 255 * light + chance.normal(0, self.noise, light.shape)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)), where


CAMERAS = {
    "clinic": Camera((1.0, 1.0, 1.0), 1.0, 0.0, 0.0, 2.0, 1.0),
    "handheld": Camera((0.9, 0.6, 0.5), 1.3, 1.0, 0.6, 9.0, 0.85),
    "old": Camera((1.1, 0.8, 0.4), 0.8, 0.7, 0.3, 5.0, 1.0),
    "wide": Camera((0.7, 0.9, 1.3), 1.1, 0.4, 0.2, 4.0, 0.92),
}


def photographs(data: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Write every photograph and its mask into `folder`; yield their rows."""
    with np.load(data, allow_pickle=False) as stored:
        images, masks, names = stored["images"], stored["masks"], stored["name"]
    folder.mkdir(parents=True)
    for camera, lens in CAMERAS.items():
        chance = np.random.default_rng(sum(map(ord, camera)))
        for image, mask, name in zip(images, masks, names, strict=True):
            child = int(name.removeprefix("Image_")[:2])
            photograph, where = lens.shoot(image, mask, chance)
            files = {"image": f"{camera}-{name}.png", "vessels": f"{camera}-{name}-vessels.png"}
            photograph.save(folder / files["image"])
            where.save(folder / files["vessels"])
            side = "adaptation" if child <= LEARNED else "test"
            yield {**files, "site": camera, "child": str(child), "split": side}


def main() -> None:
    """Write the hospitals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the hospitals' folders go")
    default = Path(__file__).resolve().parents[2] / "shared/data/retina_vessels_chase/chase_256.npz"
    parser.add_argument("--data", type=Path, default=default)
    given = parser.parse_args()
    if not given.data.is_file():
        parser.error(f"{given.data} is not there; name CHASE_DB1 with --data")
    source = given.folder.with_name(f"{given.folder.name}-photographs")
    rows = list(photographs(given.data, source))
    plant(rows, source, given.folder, labels=["split"], masks=["vessels"], patient="child")


if __name__ == "__main__":
    main()
