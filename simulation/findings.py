"""What a phantom's lungs may hold; each finding is one class of the task.

A finding belongs to the patient, not to the image: every image of a patient shows it in the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simulation.anatomy import Body, Image, Lesion, lung_span, step

_RIGHT, _LEFT = -1.0, 1.0
"""The patient's sides as signs of x."""


@dataclass(frozen=True)
class Healthy:
    """No finding."""

    def fill(self, air: Image, x: Image, y: Image) -> Image:
        """Return all the air."""
        return air


@dataclass(frozen=True)
class Nodule:
    """A soft ball at (x, y), all in mm; `density` is relative to water."""

    x: float
    y: float
    radius: float
    density: float

    def fill(self, air: Image, x: Image, y: Image) -> Image:
        """Return the air less the ball's chord, its rim blurred as by breathing."""
        square = ((x - self.x) ** 2 + (y - self.y) ** 2) / np.float32(self.radius**2)
        half_chord = np.sqrt(np.maximum(1 - square, 0)) * 0.7 + np.exp(-2 * square) * 0.3
        return np.maximum(air - np.float32(2 * self.radius * self.density) * half_chord, 0)


@dataclass(frozen=True)
class Effusion:
    """Fluid above one diaphragm: blunts the costophrenic angle and climbs the wall as a meniscus."""

    side: float
    level: float
    """Height of the fluid at the mediastinum, as y in mm."""
    climb: float
    """How much higher it stands at the chest wall, in mm."""

    def fill(self, air: Image, x: Image, y: Image) -> Image:
        """Return the air that stays above the fluid."""
        outward = np.clip(self.side * x / 130, 0, 1)
        surface = self.level - self.climb * outward * outward * outward
        wet = step((y - surface) / 7) * (self.side * x > 0)
        return air * (1 - 0.95 * wet)


def draw_nodule(rng: np.random.Generator, body: Body) -> Nodule:
    """Return a nodule clear of the apex and the diaphragm, mostly in the outer half of a lung.

    It is larger and denser than most are in life: some hundred small images have to suffice to learn it.
    """
    y = np.asarray(rng.uniform(-72, 32), dtype=np.float32)
    middle, half_width = lung_span(body, y)
    return Nodule(
        x=float(rng.choice((_RIGHT, _LEFT)) * (middle + rng.uniform(-0.25, 0.55) * half_width)),
        y=float(y),
        radius=float(rng.uniform(15, 27)),
        density=float(rng.uniform(1.3, 2.1)),
    )


def draw_effusion(rng: np.random.Generator, body: Body) -> Effusion:
    """Return a small to moderate effusion on either side."""
    return Effusion(
        side=float(rng.choice((_RIGHT, _LEFT))),
        level=float(rng.uniform(50, 85)),
        climb=float(rng.uniform(30, 60)) * body.size,
    )


FINDINGS: dict[str, Callable[[np.random.Generator, Body], Lesion]] = {
    "normal": lambda rng, body: Healthy(),
    "nodule": draw_nodule,
    "effusion": draw_effusion,
}
"""Every class a phantom can be of, and how one is drawn."""
