"""The mean of a cohort's deltas, one at a time: memory of one accumulator, not of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from common.sections import Training
from server.robust import Deltas, Median, MultiKrum, TrimmedMean

T = TypeVar("T")


CHUNK = 2**19
"""Elements converted to float64 at a time: small enough for the cache, six times faster than all at once."""


class Mean:
    """A running weighted mean in float64.

    Floating-point addition depends on its order. Feed deltas in the order of their sites' names
    (see `in_order`) and the same round gives the same bits, whoever answered first.
    """

    def __init__(self, parameters: int) -> None:
        self._sum = torch.zeros(parameters, dtype=torch.float64)
        self._exact = torch.empty(min(parameters, CHUNK), dtype=torch.float64)
        self._weight = 0.0

    def add(self, delta: Float[Tensor, "parameter"], weight: float) -> None:
        """Add one delta with a positive weight."""
        if not weight > 0:
            raise ValueError(f"a weight must be positive; it is {weight}.")
        for total, part in zip(torch.split(self._sum, CHUNK), torch.split(delta, CHUNK), strict=True):
            exact = self._exact[: len(part)].copy_(part)
            total.add_(exact, alpha=weight)
        self._weight += weight

    def result(self) -> Float[Tensor, "parameter"]:
        """Return the mean and end the accumulation: the accumulator itself is handed out, not copied."""
        if not self._weight:
            raise ValueError("the mean of no deltas does not exist; add at least one.")
        return self._sum.div_(self._weight)


def aggregator(training: Training, parameters: int) -> Deltas:
    """Return what a round's deltas are brought together by (`aggregation` in [training])."""
    robust: dict[str, Callable[[], Deltas]] = {
        "median": Median,
        "trimmed-mean": lambda: TrimmedMean(training.byzantine),
        "multi-krum": lambda: MultiKrum(training.byzantine),
    }
    return robust.get(training.aggregation, lambda: Mean(parameters))()


def in_order(arrivals: Iterable[tuple[str, T]], names: Sequence[str]) -> Iterator[tuple[str, T]]:
    """Yield (name, item) in the order of `names`, each as soon as those before it have arrived.

    What never arrives is passed over at the end. Items that come early wait, so a grid that works in
    roughly this order keeps the window small.
    """
    waiting: dict[str, T] = {}
    turn = iter(names)
    expected = next(turn, None)
    for name, item in arrivals:
        waiting[name] = item
        while expected in waiting:
            yield expected, waiting.pop(expected)
            expected = next(turn, None)
    for name in names:
        if name in waiting:
            yield name, waiting.pop(name)
