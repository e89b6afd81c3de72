"""Means that a few lying sites, or groups of them (`server.groups`), cannot move far.

- coordinate-wise median and trimmed mean: Yin et al. 2018 (ICML, "Byzantine-Robust Distributed Learning");
- Multi-Krum: Blanchard et al. 2017 (NeurIPS, "Machine Learning with Adversaries").

All weigh deltas equally and keep a cohort's in memory.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Deltas(Protocol):
    """What takes deltas one by one and gives one vector for them."""

    def add(self, delta: Float[Tensor, "parameter"], weight: float) -> None:
        """Take one site's delta."""

    def result(self) -> Float[Tensor, "parameter"]:
        """Return float64 `[parameter]`."""


class Kept:
    """Deltas that are all kept until the round is over."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def add(self, delta: Float[Tensor, "parameter"], weight: float) -> None:
        """Keep one delta; its weight does not count."""
        self._kept.append(delta)

    def stacked(self) -> Float[Tensor, "site parameter"]:
        """Return all deltas as float64."""
        if not self._kept:
            raise ValueError("the mean of no deltas does not exist; add at least one.")
        return torch.stack(self._kept).double()


class Median(Kept):
    """The median of each coordinate."""

    def result(self) -> Float[Tensor, "parameter"]:
        """Return the median; of an even number, the mean of the middle two."""
        ordered = self.stacked().sort(dim=0).values
        return ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1].mean(0)


class TrimmedMean(Kept):
    """The mean of each coordinate without its largest and smallest values."""

    def __init__(self, byzantine: int) -> None:
        super().__init__()
        self._byzantine = byzantine

    def result(self) -> Float[Tensor, "parameter"]:
        """Return the mean of what is left when `byzantine` values are cut at each end."""
        ordered = self.stacked().sort(dim=0).values
        cut = min(self._byzantine, (len(ordered) - 1) // 2)
        return ordered[cut : len(ordered) - cut].mean(0)


class MultiKrum(Kept):
    """The mean of those deltas that have the nearest neighbours."""

    def __init__(self, byzantine: int) -> None:
        super().__init__()
        self._byzantine = byzantine

    def result(self) -> Float[Tensor, "parameter"]:
        """Return the mean of the n - f deltas whose n - f - 2 nearest others are nearest."""
        deltas = self.stacked()
        chosen = max(len(deltas) - self._byzantine, 1)
        near = max(chosen - 2, 1)
        squared = torch.cdist(deltas, deltas).square()
        scores = squared.sort(dim=1).values[:, 1 : near + 1].sum(1)
        return deltas[scores.argsort(stable=True)[:chosen].sort().values].mean(0)
