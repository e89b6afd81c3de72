"""Means that a few lying sites cannot move far."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.sections import Training
from server.aggregate import Mean, aggregator
from server.robust import Median, MultiKrum, TrimmedMean

HONEST, LIARS, PARAMETERS = 7, 2, 12
ROBUST = ("median", "trimmed-mean", "multi-krum")


def deltas(seed: int, lie: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return honest deltas around 1 and lies far away."""
    chance = torch.Generator().manual_seed(seed)
    honest = 1 + 0.1 * torch.randn(HONEST, PARAMETERS, generator=chance)
    return honest, torch.full((LIARS, PARAMETERS), lie)


@pytest.mark.parametrize("name", ROBUST)
@given(seed=st.integers(0, 2**31), lie=st.sampled_from([-1e6, -50.0, 50.0, 1e6]))
def test_liars_move_the_mean_no_further_than_honest_sites_reach(name: str, seed: int, lie: float) -> None:
    """Two of nine lie as far as they like; every coordinate stays among the honest ones."""
    training = Training.model_validate({"aggregation": name, "byzantine": LIARS})
    together = aggregator(training, PARAMETERS)
    honest, lies = deltas(seed, lie)
    for delta in torch.cat([lies[:1], honest, lies[1:]]):
        together.add(delta, 1.0)
    found = together.result().float()
    assert (found >= honest.min(0).values - 1e-5).all()
    assert (found <= honest.max(0).values + 1e-5).all()


def test_a_plain_mean_is_moved_as_far_as_a_liar_likes() -> None:
    """What the others are for."""
    together = aggregator(Training(), PARAMETERS)
    assert isinstance(together, Mean)
    honest, lies = deltas(0, 1e6)
    for delta in torch.cat([honest, lies]):
        together.add(delta, 1.0)
    assert (together.result() > 1e5).all()


def test_by_hand() -> None:
    """Five numbers: the median, the middle three, and the three that lie together."""
    for kind, expected in ((Median(), 3.0), (TrimmedMean(1), 3.0), (MultiKrum(2), 2.0)):
        for value in (
            (1.0, 2.0, 3.0, 40.0, -50.0) if isinstance(kind, MultiKrum) else (1.0, 2.0, 3.0, 4.0, 90.0)
        ):
            kind.add(torch.tensor([value]), 1.0)
        assert kind.result().item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", [Median(), TrimmedMean(1), MultiKrum(1)])
def test_one_delta_is_its_own_mean_and_none_has_none(kind: Median | TrimmedMean | MultiKrum) -> None:
    """The smallest cohorts."""
    with pytest.raises(ValueError, match="no deltas"):
        kind.result()
    kind.add(torch.tensor([2.0, 3.0]), 1.0)
    assert kind.result().tolist() == [2.0, 3.0]
