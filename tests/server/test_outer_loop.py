"""The coordinator's half: outer optimisers, cohorts, streaming means, checkpoints."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CheckpointError
from common.sections import Outer
from server import checkpoint
from server.aggregate import CHUNK, Mean, in_order
from server.checkpoint import Checkpoint
from server.cohort import cohort
from server.outer_loop import OuterState, annealed, apply, init


def vector(*values: float) -> torch.Tensor:
    """Return a float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def test_meta_lr_is_annealed_linearly() -> None:
    """From meta_lr in the first of 4 rounds by quarters; meta_lr_final itself is never quite reached."""
    outer = Outer(meta_lr=1.0, meta_lr_final=0.0)
    assert [annealed(outer, done, 4) for done in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_sgd_step() -> None:
    """Phi + meta_lr * mean delta."""
    state, told = apply(init(torch.tensor([1.0, 2.0])), vector(0.5, -1.0), Outer(meta_lr=0.5), rounds=1)
    assert state.phi.tolist() == [1.25, 1.5]
    assert state.server_round == 1
    assert told["delta-norm"] == pytest.approx(1.25**0.5)


@given(st.integers(0, 1000))
def test_meta_lr_1_adopts_the_mean_phi_tilde_and_hardly_any_keeps_phi(seed: int) -> None:
    """The two ends of Reptile's step, up to one float32 rounding; a mean delta of 0 keeps phi exactly."""
    phi, phi_tilde = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
    delta = phi_tilde.double() - phi.double()
    adopted, _ = apply(init(phi), delta, Outer(meta_lr=1.0), rounds=1)
    torch.testing.assert_close(adopted.phi, phi_tilde)
    kept, _ = apply(init(phi), torch.zeros_like(delta), Outer(meta_lr=1.0), rounds=1)
    assert torch.equal(kept.phi, phi)


def test_momentum_accumulates() -> None:
    """With momentum 0.5 and delta 1 twice, the steps are 1 and 1.5."""
    outer = Outer(optimizer="momentum", momentum=0.5)
    state = init(torch.tensor([0.0]))
    for _ in range(2):
        state, _ = apply(state, vector(1.0), outer, rounds=2)
    assert state.phi.item() == 2.5


def test_adam_is_algorithm_2_of_adaptive_federated_optimization() -> None:
    """First step: m = (1 - .9) 2 = .2, v = (1 - .99) 2^2 = .04, phi + lr m / (sqrt(v) + tau)."""
    outer = Outer(optimizer="adam", momentum=0.9, beta2=0.99, tau=0.1, meta_lr=1.0)
    state, _ = apply(init(torch.tensor([0.0])), vector(2.0), outer, rounds=1)
    assert state.phi.item() == pytest.approx(0.2 / (0.2 + 0.1))


def test_a_round_without_enough_replies_leaves_phi_and_counts() -> None:
    """Phi stays as it was; the round is over all the same."""
    state, _ = apply(init(torch.tensor([1.0])), None, Outer(), rounds=3)
    assert state.phi.item() == 1.0
    assert state.server_round == 1


@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 12))
def test_a_cohort_is_a_function_of_seed_and_round(seed: int, server_round: int, size: int) -> None:
    """The same, whatever order the sites are listed in; of the right size; sorted; without repeats."""
    sites = [f"site-{number}" for number in range(10)]
    chosen = cohort(sites, size, seed=seed, server_round=server_round)
    shuffled = random.Random(1).sample(sites, 10)
    assert chosen == cohort(shuffled, size, seed=seed, server_round=server_round)
    assert len(chosen) == (size if 0 < size < 10 else 10)
    assert chosen == sorted(set(chosen))


def test_cohorts_differ_between_rounds() -> None:
    """Twenty rounds of 3 of 10 sites reach nearly everyone."""
    sites = [str(number) for number in range(10)]
    seen = {site for turn in range(20) for site in cohort(sites, 3, seed=0, server_round=turn)}
    assert len(seen) >= 9


@given(st.lists(st.tuples(st.integers(0, 99), st.floats(0.1, 50)), min_size=1, max_size=6))
def test_the_streamed_mean_is_the_weighted_mean(parts: list[tuple[int, float]]) -> None:
    """Equal to the direct formula in float64."""
    deltas = [torch.randn(7, generator=torch.Generator().manual_seed(seed)) for seed, _ in parts]
    mean = Mean(7)
    for delta, (_, weight) in zip(deltas, parts, strict=True):
        mean.add(delta, weight)
    direct = sum(delta.double() * weight for delta, (_, weight) in zip(deltas, parts, strict=True))
    torch.testing.assert_close(mean.result(), direct / sum(weight for _, weight in parts))


def test_the_streamed_mean_crosses_its_chunks() -> None:
    """A vector longer than a chunk is added whole."""
    delta = torch.arange(CHUNK + 3, dtype=torch.float32)
    mean = Mean(len(delta))
    mean.add(delta, 2.0)
    mean.add(delta, 2.0)
    assert torch.equal(mean.result(), delta.double())


def test_nothing_to_average_is_refused() -> None:
    """No delta, or a weight that is not positive."""
    with pytest.raises(ValueError, match="at least one"):
        Mean(2).result()
    with pytest.raises(ValueError, match="positive"):
        Mean(2).add(torch.zeros(2), 0.0)


@given(st.permutations(list("abcdef")), st.integers(0, 6))
def test_replies_are_taken_in_site_order_however_they_come(arrived: list[str], lost: int) -> None:
    """The order is the sites', and what never arrives is passed over."""
    arrivals = [(name, name) for name in arrived[lost:]]
    assert [name for name, _ in in_order(arrivals, "abcdef")] == sorted(arrived[lost:])


def test_a_reply_in_turn_is_not_held_back() -> None:
    """The window holds only what came early."""
    arrivals = iter([("a", 1), ("c", 3), ("b", 2)])
    taken = in_order(arrivals, ["a", "b", "c"])
    assert next(taken) == ("a", 1)
    assert next(arrivals) == ("c", 3)


def test_a_checkpoint_reads_back_whole(tmp_path: Path) -> None:
    """phi, moments, round and history, bit for bit."""
    state = OuterState(torch.randn(5), 3, {"first": torch.randn(5, dtype=torch.float64)}, clip=1 / 3)
    path = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.save(path, Checkpoint(state, [{"round": 3, "loss": 0.1}]), identity="x")
    again = checkpoint.load(path, identity="x")
    assert torch.equal(again.state.phi, state.phi)
    assert torch.equal(again.state.moments["first"], state.moments["first"])
    assert (again.state.server_round, again.state.clip) == (3, 1 / 3)
    assert again.history == [{"round": 3, "loss": 0.1}]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    """One clear message each."""
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, Checkpoint(init(torch.zeros(3)), []), identity="x")
    with pytest.raises(CheckpointError, match="another configuration"):
        checkpoint.load(path, identity="y")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path, identity="x")
