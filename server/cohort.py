"""Which sites take part in a round: a function of the seed and the round alone, so resuming is exact."""

from __future__ import annotations

from collections.abc import Collection

import torch

from common import seeds
from common.sections import Training


def least(training: Training, sites: Collection[str]) -> int:
    """Return how many of a training's sites a round needs: `min_cohort`, or where that is 0 all it asks."""
    asked = training.cohort if 0 < training.cohort < len(sites) else len(sites)
    return training.min_cohort or asked


def cohort(sites: Collection[str], size: int, *, seed: int, server_round: int) -> list[str]:
    """Return `size` of the sites (0: all of them), in the order of their names."""
    ordered = sorted(sites)
    if not 0 < size < len(ordered):
        return ordered
    generator = seeds.generator(seed, "cohort", server_round)
    chosen = torch.randperm(len(ordered), generator=generator)[:size]
    return [ordered[index] for index in sorted(chosen.tolist())]
