"""What a masked vector holds: a quantised delta, then the weight and the summed metrics in limbs.

A coordinate v in [-R, R] becomes w (v + R) / step, rounded stochastically, with step = 2 R / levels and an
even number of levels, 2^bits - 2, so that 0 is a level and stays exactly 0. A sum over at most `sites`
sites of weight at most `max_weight` stays below 2^k, k = `width`; a metric is cut into limbs small enough
for the same k.

A 64-bit word holds as many numbers of k bits as fit, side by side. No sum carries from one into the next,
so words are added and masked whole: 16-bit values of 20 sites take a third of a word each, in keystream
and on the wire. Word i holds numbers i, i + `words`, i + 2 `words` and so on, the first in its lowest
bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.secagg.reasons import Reason, refusal

WORD, WIDEST = 64, 32
"""Bits of a word, and of the widest number."""
FINEST = 2**48
"""Most levels of a metric: beyond, a float64 no longer tells neighbouring ones apart safely."""


@dataclass(frozen=True)
class Metric:
    """A number that is only ever seen summed: every site's value is clipped to [low, high]."""

    name: str
    low: float
    high: float
    resolution: float = 1.0
    """Values are rounded stochastically to multiples of this above `low`; counts (1.0) stay exact."""

    def __post_init__(self) -> None:
        _as_floats(self, "low", "high", "resolution")
        finite = all(map(math.isfinite, (self.low, self.high, self.resolution)))
        if not (self.name and finite and self.low < self.high and self.resolution > 0):
            raise refusal(Reason.BAD_LAYOUT)
        if (self.high - self.low) / self.resolution >= FINEST:
            raise refusal(Reason.BAD_LAYOUT)

    @property
    def levels(self) -> int:
        """The largest whole number that a site's value becomes."""
        return math.ceil((self.high - self.low) / self.resolution)


@dataclass(frozen=True)
class Layout:
    """The shape and the bounds of every site's vector in a slot; all sites mask under the same one."""

    parameters: int
    sites: int
    """Most sites whose vectors are summed."""
    clip_norm: float
    """Largest L2 norm of a delta; a longer one is scaled down."""
    coordinate_range: float
    """R: largest magnitude of a coordinate after that; a larger one is clipped."""
    bits: int = 16
    max_weight: int = 1
    """Largest weight of a site, a whole number; 1: all weigh the same."""
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        _as_floats(self, "clip_norm", "coordinate_range")
        bounds = (self.clip_norm, self.coordinate_range)
        names = ["weight", *(metric.name for metric in self.metrics)]
        if (
            min(self.parameters, self.sites, self.max_weight) < 1
            or not 2 <= self.bits <= 24
            or not all(math.isfinite(bound) and bound > 0 for bound in bounds)
            or len(set(names)) != len(names)
        ):
            raise refusal(Reason.BAD_LAYOUT)
        if self.width > WIDEST or self.limb_bits < 1:
            raise refusal(Reason.OVERFLOW)

    @property
    def levels(self) -> int:
        """The largest whole number that a coordinate of weight 1 becomes; even."""
        return (1 << self.bits) - 2

    @property
    def step(self) -> float:
        """The distance of two levels, in the delta's unit."""
        return 2 * self.coordinate_range / self.levels

    @property
    def width(self) -> int:
        """k: bits per number that no sum exceeds."""
        return (self.sites * self.max_weight * self.levels).bit_length()

    @property
    def limb_bits(self) -> int:
        """Bits of a metric's limb: `sites` of them summed stay below 2^k."""
        return self.width - (self.sites - 1).bit_length()

    @property
    def weight_metric(self) -> Metric:
        """The weight, which rides first among the metrics, so that nobody need be told it."""
        return Metric("weight", 0.0, float(self.max_weight))

    def limbs(self, metric: Metric) -> int:
        """Return how many numbers a metric takes."""
        return -(-metric.levels.bit_length() // self.limb_bits)

    @property
    def elements(self) -> int:
        """Numbers in the vector: parameters and all limbs."""
        return self.parameters + sum(map(self.limbs, (self.weight_metric, *self.metrics)))

    @property
    def lanes(self) -> int:
        """Numbers side by side in a word."""
        return WORD // self.width

    @property
    def words(self) -> int:
        """Length of the vector in words."""
        return -(-self.elements // self.lanes)

    @property
    def word_bytes(self) -> int:
        """Low bytes of a word that travel: those that its numbers reach."""
        return -(-self.lanes * self.width // 8)

    @property
    def packed_bytes(self) -> int:
        """Length of the masked vector as it travels."""
        return self.words * self.word_bytes

    def error_bound(self, survivors: int, total_weight: int) -> float:
        """Return a bound on each coordinate's error of the mean, against the clipped deltas' weighted mean.

        Rounding moves a site's coordinate by less than one whole number, n of them by less than n, that is
        n step / total_weight in the mean. The second term covers float64: before rounding, numbers up to
        2^32 carry a relative error of at most 2^-50, and the mean one of 2^-50 of R.
        """
        rounding = survivors * self.step / total_weight
        return rounding * (1 + 2.0**-18) + self.coordinate_range * 2.0**-50


def _as_floats(record: object, *names: str) -> None:
    """Make whole numbers floats in a frozen record, so that equal layouts have equal encodings."""
    for name in names:
        object.__setattr__(record, name, float(getattr(record, name)))
