"""Fixed groups of hospitals, summed one by one and averaged robustly: what bears liars under secure sums.

The coordinator sees each group's sum and nothing within it, so one liar is one lying group. 2 f + 1 groups
bear f liars: every coordinate of their median lies between two honest groups' own. Where the hospitals are
too few for that, 2 f groups do, and that nothing moves is one more vote: every coordinate then lies between
honest groups' own, or between one and 0 (so that where two groups disagree on a sign, nothing moves).

A run's groups are made of its hospitals' names alone, and never change: groups that crossed, in a round or
from one run to the next, would give sums that can be subtracted from each other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch

from common.config import Config
from common.errors import ConfigError
from common.sections import Training
from server.aggregate import aggregator
from server.gather import Gathered
from server.outer_loop import Vector

LEAST = 4
"""Hospitals of a group: the fewest of whom three are in every sum though one drops out."""


def groups_of(config: Config, algorithm: str, sites: Collection[str]) -> list[list[str]]:
    """Return the groups that a meta-training over `sites` is summed in; none where it is summed as a whole.

    ConfigError: the hospitals are too few.
    """
    if not config.grouped(algorithm):
        return []
    training = config.training_of(algorithm)
    fewest = _fewest(training)
    count = min(2 * training.byzantine + 1, len(sites) // LEAST)
    if count < fewest:
        raise ConfigError(
            f"[algorithms.{algorithm}]: aggregation {training.aggregation} bears {training.byzantine} lying "
            f"hospitals in secure sums over {fewest} groups of {LEAST}: it needs {fewest * LEAST} hospitals "
            f'in every training, and one has {len(sites)}. Use "mean", or have more; or, where hospitals let '
            'you see single updates, secure-aggregation.where = "nowhere".'
        )
    ordered = sorted(sites)
    bounds = [len(ordered) * place // count for place in range(count + 1)]
    return [ordered[start:end] for start, end in pairwise(bounds)]


def together(training: Training, groups: Sequence[Sequence[str]], parts: Sequence[Gathered]) -> Gathered:
    """Return what the groups bring: no mean where so few have one that lies could be most of the votes."""
    found = Gathered({})
    for number, part in enumerate(parts, 1):
        found.missing |= part.missing
        found.barred |= part.barred
        found.remarks += [f"group {number}: {remark}" for remark in part.remarks]
    heard = [part for part in parts if part.mean is not None]
    if len(heard) < _fewest(training):
        words = f"{len(heard)} of {len(groups)} groups have a sum, and {_fewest(training)} are needed"
        found.missing = {site: words for group in groups for site in group} | found.missing
        found.remarks.append(words)
        return found
    found.mean = _vote(training, [part.mean for part in heard if part.mean is not None], 0.0)
    found.sites = sum(part.sites for part in heard)
    found.episodes = sum(part.episodes for part in heard)
    found.loss_sum = sum(part.loss_sum for part in heard)
    shares = [torch.tensor([part.within / part.sites], dtype=torch.float64) for part in heard]
    found.within = found.sites * float(_vote(training, shares, training.clip_quantile))
    return found


def _fewest(training: Training) -> int:
    """Return the groups of which `byzantine` may lie, where that nothing changes is a vote as well."""
    return max(1, 2 * training.byzantine)


def _vote(training: Training, votes: Sequence[Vector], unchanged: float) -> Vector:
    """Return the robust mean of votes; of an even number, with one for `unchanged`."""
    deltas = aggregator(training, len(votes[0]))
    for vote in votes:
        deltas.add(vote, 1.0)
    if len(votes) == 2 * training.byzantine:
        deltas.add(torch.full_like(votes[0], unchanged), 1.0)
    return deltas.result()
