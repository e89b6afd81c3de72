"""Episodes from Omniglot's two small background sets: six alphabets to train on, two others to test on."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.cases import Cases, Episode

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "omniglot_small"
ARCHIVES = ("images_background_small1.zip", "images_background_small2.zip")
TEST_ALPHABETS = ("Korean", "Early_Aramaic")
"""62 characters; the other six alphabets have 180."""
SIZE = 28


@dataclass(frozen=True)
class Characters:
    """Drawings `[character, 20, 1, 28, 28]`, ink 1 on paper 0."""

    drawings: Tensor

    def with_rotations(self) -> Characters:
        """Return four times as many: each character turned by quarter turns is another (1606.04080)."""
        return Characters(torch.cat([torch.rot90(self.drawings, turns, (3, 4)) for turns in range(4)]))

    def to(self, dtype: torch.dtype) -> Characters:
        """Return the drawings in another precision."""
        return Characters(self.drawings.to(dtype))

    def episode(self, way: int, shot: int, query: int, generator: torch.Generator) -> Episode:
        """Return `way` characters, `shot` drawings of each to learn from and `query` others to be asked."""
        chosen = torch.randperm(len(self.drawings), generator=generator)[:way]
        order = torch.stack([torch.randperm(20, generator=generator)[: shot + query] for _ in range(way)])
        images = self.drawings[chosen[:, None], order]
        return Episode(_cases(images[:, :shot]), _cases(images[:, shot:]))


def characters(folder: Path) -> tuple[Characters, Characters]:
    """Return the training and the test characters."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for archive in ARCHIVES:
        with zipfile.ZipFile(folder / archive) as file:
            for name in sorted(file.namelist()):
                if name.endswith(".png"):
                    _, alphabet, character, drawing = name.split("/")
                    found.setdefault((alphabet, character), {})[drawing] = _read(file.read(name))
    sides = {True: [], False: []}
    for (alphabet, _), drawings in sorted(found.items()):
        sides[alphabet in TEST_ALPHABETS].append(torch.stack([drawings[name] for name in sorted(drawings)]))
    return Characters(torch.stack(sides[False])), Characters(torch.stack(sides[True]))


def _read(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as image:
        small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
    return 1 - torch.from_numpy(np.asarray(small, np.float32) / 255)[None]


def _cases(images: Tensor) -> Cases:
    way, each = images.shape[:2]
    flat = images.flatten(0, 1).contiguous()
    return Cases(flat, torch.arange(way).repeat_interleave(each), torch.arange(len(flat)))
