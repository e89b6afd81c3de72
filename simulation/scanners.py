"""X-ray equipment that differs from site to site: what makes one hospital's images strange to another.

The chain is the physical one: the beam and its heel effect, scatter, the point spread, quantum
noise, the logarithm, the maker's tone curve and sharpening, shutters and a lead marker, and at last
the stored values and their window (PS3.3 C.7.6.3, C.11.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt16

from common.seeds import derive
from simulation.anatomy import Image
from simulation.write_dicom import Encoding

Stored = UInt16[np.ndarray, "row column"]

_ATTENUATION = 0.02
"""Of water at the mean energy of a chest exposure, per mm (NIST XCOM: 0.0206 at 60 keV)."""
_SHARPENING_RADIUS = 9.0
"""Standard deviation in mm of the unsharp mask."""
_FEWEST_COLUMNS = 36
"""OpenJPEG's six resolutions need 32 pixels each way, and an image may be a little lower than wide."""
_STRATA = 6
"""Sites are drawn in sixes, so that even a few differ widely."""
_RANGES = {
    "maker": (0.0, _STRATA),
    "field": (300.0, 420.0),  # mm across
    "height": (0.92, 1.15),  # of the field, relative to its width
    "detector": (0.8, 1.2),  # columns, relative to the configured matrix
    "log_photons": (2.9, 4.3),
    "scatter": (0.0, 0.1),
    "heel": (0.0, 0.6),
    "blur": (0.5, 4.0),
    "sharpening": (-0.5, 1.5),
    "log_gamma": (-0.8, 0.7),
    "latitude": (0.6, 1.0),
    "shutter": (-15.0, 20.0),
    "antero_posterior": (0.0, 0.6),
}
"""What differs between sites, and how widely; below 0 a sharpening or shutter is none."""


@dataclass(frozen=True)
class Maker:
    """What one maker's equipment writes into every file."""

    name: str
    modality: Literal["CR", "DX"]
    bits_stored: int
    inverse: bool
    """MONOCHROME1: the smallest value is white."""
    encoding: Encoding
    marker: bool
    """Leaves a lead "L" in the image, on the patient's left."""


MAKERS = (
    Maker("Aurelia Imaging", "CR", 10, inverse=True, encoding="implicit", marker=True),
    Maker("Borealis Medical", "DX", 12, inverse=False, encoding="explicit", marker=False),
    Maker("Cassini Radiology", "DX", 14, inverse=True, encoding="jpeg-2000", marker=True),
    Maker("Dorada Systems", "CR", 8, inverse=False, encoding="jpeg", marker=True),
    Maker("Elbrus Diagnostics", "DX", 16, inverse=False, encoding="rle", marker=False),
    Maker("Fjord X-Ray", "CR", 12, inverse=True, encoding="explicit", marker=False),
)
"""As many as strata: sites of one six have six makers."""


@dataclass(frozen=True)
class Scanner:
    """One site's equipment and habits. Lengths in mm; shares from 0 to 1."""

    maker: Maker
    rows: int
    columns: int
    pixel_spacing: float
    photons: float
    """Per pixel in the open beam: the fewer, the more quantum noise."""
    scatter: float
    """Veil over the image, relative to the mean exposure."""
    heel: float
    """Loss of exposure from the image's top to its bottom, as a share."""
    blur: float
    """Standard deviation of the point spread."""
    sharpening: float
    gamma: float
    latitude: float
    """Share of the stored range that the window shows."""
    shutter: float
    """Width of the black border."""
    antero_posterior: float
    """Share of patients imaged in bed."""

    @property
    def window(self) -> tuple[float, float]:
        """WindowCenter and WindowWidth in stored values (linear function of PS3.3 C.11.2.1.2.1)."""
        low, high = self._window_ends()
        if self.maker.inverse:
            low, high = self._top() - high, self._top() - low
        return (low + high + 1) / 2, float(high - low + 1)

    def points(self) -> tuple[Image, Image]:
        """Return x and y of every pixel's centre, in mm from the detector's middle."""
        x, y = (np.arange(count, dtype=np.float32) - (count - 1) / 2 for count in (self.columns, self.rows))
        across, down = np.meshgrid(x * np.float32(self.pixel_spacing), y * np.float32(self.pixel_spacing))
        return across, down

    def expose(self, water: Image, rng: np.random.Generator) -> Stored:
        """Return the stored values for `water`, the mm of water along each ray; `rng` draws the quanta."""
        exposure = np.exp(-_ATTENUATION * water)
        exposure = (exposure + np.float32(self.scatter * exposure.mean())) * _beam(self)
        exposure = blur(exposure, self.blur / self.pixel_spacing)
        # Poisson's mean and variance; the normal law stands in for it, being ten times as fast.
        quanta = rng.standard_normal(exposure.shape, dtype=np.float32)
        exposure = exposure + np.sqrt(exposure / np.float32(self.photons)) * quanta
        return self._store(self._process(-np.log(np.maximum(exposure, 1e-4))))

    def _process(self, density: Image) -> Image:
        """Return display values, mostly 0 (black) to 1, as the maker's own software shows `density`."""
        # Exposure recognition: the range follows the image, as in every computed radiograph.
        low, high = np.quantile(density[::4, ::4], (0.005, 0.985))
        share = np.clip((density - np.float32(low)) / np.float32(high - low), 1e-3, 1.2)
        tone: Image = share ** np.float32(self.gamma)
        if self.sharpening:
            smooth = blur(tone, _SHARPENING_RADIUS / self.pixel_spacing)
            tone = tone + np.float32(self.sharpening) * (tone - smooth)
        return tone

    def _store(self, tone: Image) -> Stored:
        """Return `tone` in stored values, with shutter and marker, inverted where the maker does so."""
        low, high = self._window_ends()
        tone = np.where(_shut(self), np.float32(0), tone)
        tone = np.where(_marker(self), np.float32(1), tone)
        values = np.clip(np.rint(low + tone * (high - low)), 0, self._top()).astype(np.uint16)
        return np.asarray(self._top() - values if self.maker.inverse else values, dtype=np.uint16)

    def _top(self) -> int:
        """Return the largest value that the bits stored can hold."""
        return (1 << self.maker.bits_stored) - 1

    def _window_ends(self) -> tuple[int, int]:
        """Return the stored values of display 0 and 1 before any inversion."""
        margin = (1 - self.latitude) / 2
        return round(margin * self._top()), round((1 - margin) * self._top())


def draw_scanner(seed: int, site: int, matrix: int) -> Scanner:
    """Return the scanner of site number `site` (from 0); it depends on no other site.

    Every six sites are a Latin hypercube (McKay, Beckman and Conover, Technometrics 21, 1979): each
    property takes one value from each sixth of its range, so that sites differ under any seed.
    """
    block, place = divmod(site, _STRATA)
    rng = np.random.default_rng(derive(seed, "scanners", block))
    strata = rng.permuted(np.tile(np.arange(_STRATA), (len(_RANGES), 1)), axis=1)
    shares = ((strata + rng.random(strata.shape)) / _STRATA)[:, place].tolist()
    drawn = {
        name: low + (high - low) * share
        for (name, (low, high)), share in zip(_RANGES.items(), shares, strict=True)
    }
    columns = max(_FEWEST_COLUMNS, 2 * round(matrix * drawn["detector"] / 2))
    return Scanner(
        maker=MAKERS[int(drawn["maker"])],
        rows=2 * round(columns * drawn["height"] / 2),
        columns=columns,
        pixel_spacing=round(drawn["field"] / columns, 3),
        photons=10 ** drawn["log_photons"],
        scatter=drawn["scatter"],
        heel=drawn["heel"],
        blur=drawn["blur"],
        sharpening=max(0.0, drawn["sharpening"]),
        gamma=2 ** drawn["log_gamma"],
        latitude=drawn["latitude"],
        shutter=max(0.0, drawn["shutter"]),
        antero_posterior=drawn["antero_posterior"],
    )


def blur(image: Image, pixels: float) -> Image:
    """Return `image` under a Gaussian of standard deviation `pixels`; the border's values go on outside."""
    reach = max(1, round(2.5 * pixels))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / pixels) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    padded = np.pad(image, reach, mode="edge")
    rows, columns = image.shape
    down = sum(weight * padded[shift : shift + rows] for shift, weight in enumerate(weights))
    across: Image = sum(weight * down[:, shift : shift + columns] for shift, weight in enumerate(weights))
    return across


@lru_cache(maxsize=2)
def _beam(scanner: Scanner) -> Image:
    """Return the open beam's intensity: strongest at the top, weaker in the corners."""
    x, y = scanner.points()
    reach = scanner.pixel_spacing * scanner.rows / 2
    heel = np.float32(scanner.heel) * (0.5 + 0.5 * y / reach)
    beam: Image = 1 - heel - 0.15 * (x**2 + y**2) / (2 * reach**2)
    return beam


@lru_cache(maxsize=2)
def _shut(scanner: Scanner) -> Bool[np.ndarray, "row column"]:
    """Return where the shutters keep the detector dark."""
    x, y = scanner.points()
    right, bottom = x[0, -1] - scanner.shutter, y[-1, 0] - scanner.shutter
    shut: Bool[np.ndarray, "row column"] = (scanner.shutter > 0) & (
        (np.abs(x) > right) | (np.abs(y) > bottom)
    )
    return shut


@lru_cache(maxsize=2)
def _marker(scanner: Scanner) -> Bool[np.ndarray, "row column"]:
    """Return where the lead letter L lies: 20 mm tall, on the patient's left shoulder."""
    x, y = scanner.points()
    x, y = x - (x[0, -1] - 45), y - (y[0, 0] + 30)
    stem = (x > 0) & (x < 4.5) & (y > 0) & (y < 20)
    foot = (x > 0) & (x < 13) & (y > 15.5) & (y < 20)
    letter: Bool[np.ndarray, "row column"] = scanner.maker.marker & (stem | foot)
    return letter
