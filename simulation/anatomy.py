"""Chests that were never alive: a frontal radiograph's anatomy as thickness of water.

Everything is closed-form on a grid of millimetres, so an image costs a millisecond at any matrix.
The frame is the reader's: x grows towards the patient's left (the image's right), y towards the
feet, the origin lies on the midline in the middle of the lungs. A tissue's thickness is given in
millimetres of water that would absorb as much; `simulation.scanners` turns it into exposure.

The texture follows a power law, since projected anatomy does (Burgess, Jacobson and Judy,
"Human observer detection experiments with mammograms and power-law noise", Med Phys 28, 2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from jaxtyping import Float32

Image = Float32[np.ndarray, "row column"]
Heights = Float32[np.ndarray, "*point"]
_APEX = -122.0
_LUNG_LENGTH = 215.0
_TEXTURE_SLOPE = 1.5
"""Amplitude falls as frequency to this power: half of the power spectrum's exponent, 3."""


@dataclass(frozen=True)
class Body:
    """One patient's build: lengths in mm, `size` and `girth` relative to the mean adult."""

    size: float
    girth: float
    depth: float
    """Front to back, as mm of water where no air is."""
    lung_width: float
    heart_width: float
    heart_tilt: float
    rib_spacing: float
    rib_slope: float
    spine_bend: float
    texture: float
    """Standard deviation of the lungs' markings, in mm of water."""


@dataclass(frozen=True)
class Pose:
    """How the patient stood for one image: shifts in mm, `turn` in radians, `breath` in mm of diaphragm."""

    right: float
    down: float
    turn: float
    breath: float
    antero_posterior: bool
    """Beam from the front: the heart lies farther from the detector and looks larger."""


class Lesion(Protocol):
    """A finding in the lungs: it takes the place of air."""

    def fill(self, air: Image, x: Image, y: Image) -> Image:
        """Return the air that is left, in mm of water, on the body's own grid."""


def draw_body(rng: np.random.Generator) -> Body:
    """Return a random adult."""
    return Body(
        size=float(np.clip(rng.normal(1.0, 0.05), 0.86, 1.14)),
        girth=float(rng.uniform(0.92, 1.15)),
        depth=float(rng.uniform(185, 250)),
        lung_width=float(rng.uniform(58, 66)),
        heart_width=float(rng.uniform(44, 62)),
        heart_tilt=float(rng.uniform(0.3, 0.8)),
        rib_spacing=float(rng.uniform(22, 27)),
        rib_slope=float(rng.uniform(0.15, 0.45)),
        spine_bend=float(rng.normal(0, 5)),
        texture=float(rng.uniform(3, 5)),
    )


def draw_pose(rng: np.random.Generator, *, antero_posterior: bool) -> Pose:
    """Return a random stance; a patient in bed (antero-posterior) lies less straight and breathes in less."""
    looseness = 1.6 if antero_posterior else 1.0
    return Pose(
        right=float(rng.normal(0, 5 * looseness)),
        down=float(rng.normal(0, 6 * looseness)),
        turn=float(rng.normal(0, 0.02 * looseness)),
        breath=float(rng.normal(-12 if antero_posterior else 0, 6)),
        antero_posterior=antero_posterior,
    )


def render(body: Body, pose: Pose, lesion: Lesion, x: Image, y: Image, rng: np.random.Generator) -> Image:
    """Return the water thickness in mm (0 to about 320) along each ray to the detector's points (x, y) mm.

    `rng` draws the texture alone, so that two images of one patient differ as two exposures do.
    """
    x, y = _in_body(body, pose, x, y)
    torso = _torso(body, x, y)
    lungs = _lungs(body, pose, x, y) * (1 - 0.85 * _heart(body, pose, x, y))
    markings = texture(rng, *x.shape) * np.float32(body.texture)
    air = lesion.fill(lungs, x, y) - markings * (lungs / 110 + 0.35)
    bones = _ribs(body, x, y) + _clavicles(x, y) + _spine(body, x, y)
    through: Image = np.maximum(torso - air + _mediastinum(x, y) + bones, 0) * (torso > 0)
    return through


def texture(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Return power-law noise of mean 0 and standard deviation 1 (about 1 for any one image)."""
    filter_ = _power_law(rows, columns)
    spectrum = np.fft.rfft2(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.fft.irfft2(spectrum * filter_, s=(rows, columns)).astype(np.float32)


@lru_cache(maxsize=16)
def _power_law(rows: int, columns: int) -> Float32[np.ndarray, "row half_column"]:
    """Return the amplitude filter, flat below three cycles per image, of unit mean square."""
    vertical = np.fft.fftfreq(rows)[:, None] * rows
    horizontal = np.fft.rfftfreq(columns)[None, :] * columns
    frequency = np.hypot(vertical, horizontal)
    amplitude = np.maximum(frequency, 3.0) ** -_TEXTURE_SLOPE
    amplitude[0, 0] = 0
    # All columns of the half spectrum but the outer ones stand for two of the whole one.
    twice = np.full(horizontal.shape, 2.0)
    twice[0, 0] = 1.0
    if columns % 2 == 0:
        twice[0, -1] = 1.0
    mean_square = (amplitude**2 * twice).sum() / (rows * columns)
    return np.asarray(amplitude / np.sqrt(mean_square), dtype=np.float32)


def _in_body(body: Body, pose: Pose, x: Image, y: Image) -> tuple[Image, Image]:
    """Return the detector's points in the body's own frame, of mean size and standing straight."""
    cosine, sine = np.float32(np.cos(pose.turn) / body.size), np.float32(np.sin(pose.turn) / body.size)
    x, y = x - np.float32(pose.right), y - np.float32(pose.down)
    return cosine * x + sine * y, cosine * y - sine * x


def _torso(body: Body, x: Image, y: Image) -> Image:
    """Return trunk, shoulders and neck without air, in mm of water."""
    flare = 1 + 0.3 * np.exp(-(((y + 115) / 65) ** 2))
    across = x / (np.float32(166 * body.girth) * flare)
    trunk = np.sqrt(np.maximum(1 - _fourth(across), 0))
    shoulder = step((y + 172 - 0.0016 * x**2) / 14)
    neck = 0.55 * np.sqrt(np.maximum(1 - (x / 62) ** 2, 0))
    slimmer_above = 0.8 + 0.2 * step((y + 60) / 60)
    trunk_and_neck: Image = np.float32(body.depth) * np.maximum(trunk * shoulder * slimmer_above, neck)
    return trunk_and_neck


def lung_span(body: Body, y: Heights) -> tuple[Heights, Heights]:
    """Return how far from the midline a lung's middle lies at height `y`, and its half width, in mm."""
    down = np.clip((y - _APEX) / _LUNG_LENGTH, 0, 1.2)
    half_width = np.float32(body.lung_width) * np.sqrt(
        np.maximum(1 - np.maximum(1 - 1.25 * down, 0) ** 2, 1e-6)
    )
    return 42 + 32 * down, half_width


def _lungs(body: Body, pose: Pose, x: Image, y: Image) -> Image:
    """Return both lungs' air above the diaphragm's domes, in mm of water displaced."""
    outward = np.abs(x)
    middle, half_width = lung_span(body, y)
    across = np.sqrt(np.maximum(1 - _fourth((outward - middle) / half_width), 0))
    open_chest = across * np.clip((y - _APEX) * (5 / _LUNG_LENGTH), 0, 1) * step((outward - 20) / 4)
    # The liver holds the right dome higher; the outer angle reaches deepest.
    dome = 88 + np.float32(pose.breath) - np.where(x < 0, np.float32(10), np.float32(0))
    diaphragm = dome - 34 * (1 - ((outward - 62) / 72) ** 2)
    air: Image = 118 * open_chest * step((diaphragm - y) / 4)
    return air


def _heart(body: Body, pose: Pose, x: Image, y: Image) -> Image:
    """Return the share of air that the heart takes, 0 to 1."""
    width = np.float32(body.heart_width * (1.15 if pose.antero_posterior else 1.0))
    cosine, sine = np.float32(np.cos(body.heart_tilt)), np.float32(np.sin(body.heart_tilt))
    x, y = (x - 22) / width, (y - 42) / width
    along, beside = x * cosine + y * sine, y * cosine - x * sine
    share: Image = step((1 - (along / 1.2) ** 2 - (beside / 0.85) ** 2) * 4)
    return share


def _mediastinum(x: Image, y: Image) -> Image:
    """Return great vessels and hila less the windpipe's air, in mm of water."""
    vessels = 40 * np.exp(-_fourth(x / 25)) * step((y + 130) / 30)
    knob = 45 * np.exp(-(((x - 27) / 13) ** 2) - ((y + 52) / 15) ** 2)
    hila = 30 * np.exp(-(((np.abs(x - 3) - 40) / 14) ** 2) - ((y + 6) / 26) ** 2)
    windpipe = 34 * np.exp(-_fourth((x + 2) / 8)) * step((-30 - y) / 12)
    added: Image = (vessels + knob + hila) * step((90 - y) / 20) - windpipe
    return added


def _ribs(body: Body, x: Image, y: Image) -> Image:
    """Return rear and front ribs, in mm of water above soft tissue: one wave each, not a rib at a time."""
    outward = np.abs(x)
    cage = np.exp(-_fourth((outward - 74) / 76)) * step((y + 128) / 8) * step((80 - y) / 25)
    wave, slope = np.float32(2 * np.pi / body.rib_spacing), np.float32(body.rib_slope)
    rear = np.cos(wave * (y - slope * outward - 0.0014 * (outward - 30) ** 2))
    front = np.cos(wave * (y + (slope + 0.35) * outward - 0.0035 * (outward - 120) ** 2))
    added: Image = cage * (
        12 * step((rear - 0.35) * 4) + 5 * step((front - 0.45) * 4) * step((outward - 60) / 10)
    )
    return added


def _spine(body: Body, x: Image, y: Image) -> Image:
    """Return the vertebrae and their discs, in mm of water above soft tissue."""
    centre = np.float32(body.spine_bend) * np.sin(y / 90)
    added: Image = np.exp(-_fourth((x - centre) / 17)) * (20 + 7 * np.cos(y * np.float32(2 * np.pi / 24)))
    return added


def _clavicles(x: Image, y: Image) -> Image:
    """Return both clavicles, in mm of water above soft tissue."""
    outward = np.abs(x)
    middle = -98 - 0.16 * (outward - 15) - 9 * np.sin(outward / 28)
    added: Image = (
        22 * np.exp(-_fourth((y - middle) / 7)) * step((outward - 14) / 5) * step((150 - outward) / 12)
    )
    return added


def step(distance: Image) -> Image:
    """Return a soft edge from 0 to 1 about distance 0."""
    edge: Image = 0.5 + 0.5 * np.tanh(distance)
    return edge


def _fourth(length: Image) -> Image:
    """Return the fourth power; twenty times as fast as `length**4`."""
    power: Image = np.square(np.square(length))
    return power
