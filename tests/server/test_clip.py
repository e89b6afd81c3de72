"""The clip follows the length of the honest deltas, from far away and whatever a minority says."""

from __future__ import annotations

import pytest

from common.algorithms.algorithm import CLIP_MARGIN
from common.config import load
from common.sections import Training
from server.clip import following

NORMS = [0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
"""Lengths of seven honest deltas before they are clipped."""
FAR = 60.0
"""What [training] allows at most."""


def training(**over: float) -> Training:
    """Return settings of which any delta may be FAR long."""
    return load().training.model_copy(update={"clip_norm": FAR, **over})


def clips(rounds: int, liars: int, says: bool, settings: Training) -> list[float]:
    """Return half of each round's clip: seven honest sites, and some liars who always say the same."""
    clip, found = 0.0, []
    for server_round in range(1, rounds + 1):
        within = sum(CLIP_MARGIN * norm <= (clip or FAR) for norm in NORMS) + liars * says
        clip = following(clip, settings, 100, server_round, within / (len(NORMS) + liars))
        found.append(clip / CLIP_MARGIN)
    return found


def test_the_clip_comes_to_twice_the_median_within_few_rounds() -> None:
    """From 60 to within a factor of two of twice the median, 1.2, after six rounds; it stays near."""
    found = clips(60, 0, True, training())
    assert all(0.6 < clip < 2.4 for clip in found[5:])
    assert all(1.0 < clip < 1.5 for clip in found[40:])


@pytest.mark.parametrize("says", [True, False])
def test_a_minority_of_liars_leaves_it_among_the_honest(says: bool) -> None:
    """Two liars beside seven honest sites: between the shortest and the longest honest delta, a step more."""
    found = clips(120, 2, says, training())
    assert all(0.8 < clip < 1.7 for clip in found[80:])


def test_a_quantile_of_0_leaves_the_clip_where_it_begins() -> None:
    """And no clip is ever above what [training] allows."""
    assert clips(5, 0, True, training(clip_quantile=0.0)) == [FAR / CLIP_MARGIN] * 5
    assert max(clips(30, 8, False, training())) == FAR / CLIP_MARGIN
