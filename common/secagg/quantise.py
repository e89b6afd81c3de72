"""From a site's contribution to whole numbers, and from their sum back to the mean.

Rounding is stochastic, so that errors of many sites and rounds average out. Who knows the randomness of one
site can tell its numbers from the others' in a sum, where steps are coarse: it comes from a key of the site's
own, which the caller derives from what only the site has and from what was asked, so that runs repeat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt64

from common.secagg.layout import Layout, Metric
from common.secagg.masking import PIECE, Keystream, pieces
from common.secagg.reasons import Reason, refusal

Vector = np.ndarray
ROUNDING_BITS = 16
"""Bits of randomness per rounding: the bias is below 2^-16 of a step, and whole numbers stay as they are."""


@dataclass(frozen=True)
class Contribution:
    """What a site has to say in a round; it leaves the site only masked."""

    delta: Float[Vector, "parameter"] = field(repr=False)
    """Refused unless float32."""
    weight: int = field(repr=False)
    """1 to the layout's `max_weight`."""
    metrics: Mapping[str, float] = field(repr=False)
    rounding_key: bytes = field(repr=False)
    """32 bytes that nobody but the site can compute: decides which way numbers are rounded."""


@dataclass(frozen=True)
class Total:
    """What the coordinator learns of a slot."""

    mean: Float64[Vector, "parameter"]
    """The weighted mean of the clipped deltas, within `Layout.error_bound`."""
    weight: int
    """The sum of the weights."""
    metrics: Mapping[str, float]
    """Each metric's sum over the survivors, within one resolution per survivor; counts are exact."""


class Quantiser:
    """A contribution as the whole numbers of a layout, piece after piece from the start."""

    def __init__(self, layout: Layout, contribution: Contribution) -> None:
        _check(layout, contribution)
        self._layout, self._contribution = layout, contribution
        self._factor = clip_factor(contribution.delta, layout.clip_norm)
        self._chance = Keystream(contribution.rounding_key)
        self._noise = np.empty(PIECE, "<u2")
        self._fraction = np.empty(PIECE, np.float32)
        self._exact = np.empty(PIECE, np.float64)
        self._numbers = np.empty(PIECE, np.uint64)
        self._limbs = self._metrics()

    def write(self, piece: slice, words: UInt64[Vector, "word"]) -> None:
        """Put the words of `piece`, which follows the one before, into `words`."""
        layout, numbers = self._layout, self._numbers[: len(words)]
        words[:] = 0
        for lane in range(layout.lanes):
            self._fill(lane * layout.words + piece.start, numbers)
            words |= np.left_shift(numbers, np.uint64(lane * layout.width), out=numbers)

    def _fill(self, start: int, numbers: UInt64[Vector, "number"]) -> None:
        """Write the vector's numbers from `start` on: coordinates, then limbs, then zeros."""
        coordinates = self._contribution.delta[start : start + len(numbers)]
        if len(coordinates):
            self._round(coordinates, numbers[: len(coordinates)])
        rest = numbers[len(coordinates) :]
        limbs = self._limbs[max(start - self._layout.parameters, 0) :][: len(rest)]
        rest[: len(limbs)] = limbs
        rest[len(limbs) :] = 0

    def _round(self, coordinates: Float32[Vector, "number"], numbers: UInt64[Vector, "number"]) -> None:
        """Write floor(clip(w v / step + w levels / 2) + noise), noise uniform in [0, 1)."""
        weight, layout = self._contribution.weight, self._layout
        exact, noise = self._exact[: len(numbers)], self._noise[: len(numbers)]
        np.multiply(coordinates, self._factor * weight / layout.step, out=exact, dtype=np.float64)
        exact += weight * layout.levels // 2
        np.clip(exact, 0, weight * layout.levels, out=exact)
        self._chance.read_into(noise)
        exact += np.multiply(noise, np.float32(2.0**-ROUNDING_BITS), out=self._fraction[: len(numbers)])
        numbers.view(np.int64)[:] = exact  # below 2^32: the signed conversion is the faster one

    def _metrics(self) -> UInt64[Vector, "limb"]:
        layout, given = self._layout, self._contribution
        metrics = (layout.weight_metric, *layout.metrics)
        noise = np.empty(len(metrics), "<u2")
        self._chance.read_into(noise)
        limbs: list[int] = []
        for metric, chance in zip(metrics, noise, strict=True):
            value = float(given.weight if metric is metrics[0] else given.metrics[metric.name])
            whole = _whole(metric, value, float(chance) * 2.0**-ROUNDING_BITS)
            size = layout.limb_bits
            limbs += [whole >> size * place & (1 << size) - 1 for place in range(layout.limbs(metric))]
        return np.array(limbs, np.uint64)


def clip_factor(delta: Float[Vector, "parameter"], clip_norm: float) -> float:
    """Return the factor that brings a delta's L2 norm to at most `clip_norm`; refused unless finite."""
    square, exact = 0.0, np.empty(min(PIECE, len(delta)), np.float64)
    for piece in pieces(len(delta)):
        part = exact[: piece.stop - piece.start]
        part[:] = delta[piece]
        square += float(part @ part)
    if not math.isfinite(square):
        raise refusal(Reason.BAD_CONTRIBUTION)
    return min(1.0, clip_norm / math.sqrt(square)) if square else 1.0


def read_total(layout: Layout, words: UInt64[Vector, "word"], survivors: int) -> Total:
    """Return the mean and the sums that an unmasked sum of `survivors` vectors holds.

    Refused as `impossible-sum` if honest survivors could not have made it: weights, coordinates, metrics
    and the mean's norm must lie within their bounds.
    """
    numbers = _numbers(layout, words)
    start, sums = layout.parameters, {}
    for metric in (layout.weight_metric, *layout.metrics):
        count = layout.limbs(metric)
        limbs = numbers[start : start + count].astype(int).tolist()
        start += count
        total = sum(limb << layout.limb_bits * place for place, limb in enumerate(limbs))
        _possible(total <= survivors * metric.levels)
        sums[metric.name] = survivors * metric.low + total * metric.resolution
    weight = round(sums.pop("weight"))
    _possible(survivors <= weight)
    mean = numbers[: layout.parameters]
    _possible(bool(mean.max() <= weight * layout.levels))
    mean -= weight * layout.levels // 2
    mean *= layout.step / weight
    slack = layout.error_bound(survivors, weight) * math.sqrt(layout.parameters)
    _possible(math.sqrt(float(mean @ mean)) <= layout.clip_norm * (1 + 1e-9) + slack)
    return Total(mean, weight, sums)


def _numbers(layout: Layout, words: UInt64[Vector, "word"]) -> Float64[Vector, "number"]:
    """Return the summed numbers of all lanes in order; whole, and below 2^32, so exact."""
    numbers = np.empty((layout.lanes, len(words)), np.float64)
    lowest, width = np.uint64((1 << layout.width) - 1), np.uint64(layout.width)
    for piece in pieces(len(words)):
        left = words[piece]
        for row in numbers:
            row[piece] = left & lowest
            left = left >> width
    return numbers.reshape(-1)


def _check(layout: Layout, contribution: Contribution) -> None:
    fits = (
        contribution.delta.shape == (layout.parameters,)
        and contribution.delta.dtype == np.float32
        and 1 <= contribution.weight <= layout.max_weight
        and contribution.metrics.keys() == {metric.name for metric in layout.metrics}
        and all(map(math.isfinite, contribution.metrics.values()))
        and len(contribution.rounding_key) == 32
    )
    if not fits:
        raise refusal(Reason.BAD_CONTRIBUTION)


def _whole(metric: Metric, value: float, noise: float) -> int:
    """Return a value, clipped to its metric's range, as a whole number of resolutions above `low`."""
    clipped = min(max(value, metric.low), metric.high)
    return min(math.floor((clipped - metric.low) / metric.resolution + noise), metric.levels)


def _possible(holds: bool) -> None:
    if not holds:
        raise refusal(Reason.IMPOSSIBLE_SUM)
