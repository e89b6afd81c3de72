"""Fixed groups of hospitals, robustly averaged: under secure sums one liar does not steer a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.app import app as client_app
from client.policy import guarded
from client.site import NodeConfig
from common import wire
from common.config import Config
from common.errors import ConfigError
from common.initialise import shared_weights
from common.secagg.layout import Layout
from common.weights import pack
from server import evaluation
from server.app import MetaTrained, common_input_shape, initial_weights, meta_train
from server.experiment.plan import Plan
from server.gather import Gathered
from server.groups import LEAST, groups_of, together
from simulation.attack.liar import LyingGrid, shifted
from simulation.grid import InProcessGrid
from tests.server.rounds import NEVER, Lossy, Make, settings

MEAN, MEDIAN = 'training.aggregation="mean"', 'training.aggregation="median"'
FIXED = "training.clip-quantile=0.0"


def trained(
    grid: InProcessGrid, config: Config, folder: Path, keys: dict[str, bytes] | None, **named: Any
) -> tuple[torch.Tensor, MetaTrained]:
    """Return where a training over all of a grid begins, and its end."""
    sites = evaluation.describe(grid, config).all_of_them()
    initial = pack(initial_weights(config, common_input_shape(sites.values())))
    return initial, meta_train(grid, config, "reptile", sites, initial, folder, identities=keys, **named)


def push(layout: Layout, vector: bytes) -> bytes:
    """Shift the sum along one coordinate, by much of what the check of its length allows."""
    shift = np.zeros(layout.parameters)
    shift[0] = 0.4 * layout.sites * min(layout.clip_norm, layout.coordinate_range)
    return shifted(layout, vector, shift)


def test_one_liar_of_eight_steers_a_mean_and_not_the_median_of_groups(five: Make, tmp_path: Path) -> None:
    """In the median no coordinate goes further than the honest group's, nor against it.

    All patients in every batch: the group alone is another configuration, which would draw other batches.
    """
    nodes, keys = five(8)
    over = (FIXED, "training.rounds=1", "training.batch-size=0", "training.clip-norm=1.0")
    mean, median = (settings(*over, one) for one in (MEAN, MEDIAN))
    names = [str(node["site"]) for node in nodes]
    honest = groups_of(median, "reptile", names)[1]

    def first(grid: InProcessGrid, config: Config, sites: list[str], folder: str) -> float:
        known = evaluation.describe(grid, config).all_of_them()
        initial = pack(shared_weights(config, "reptile", common_input_shape(known.values())))
        asked = {site: known[site] for site in sites}
        end = meta_train(grid, config, "reptile", asked, initial, tmp_path / folder, identities=keys)
        return float((end.phi - initial)[0])

    with LyingGrid(client_app, nodes, "site-2", push) as grid:
        steered, bounded = first(grid, mean, names, "mean"), first(grid, median, names, "median")
        theirs = first(grid, mean, honest, "honest")
    rounding = 2 * 2 / (2**16 - 2)  # a step of 16 bits over twice clip-norm, in either training
    assert steered > 50 * (abs(theirs) + rounding)
    assert min(theirs, 0.0) - rounding <= bounded <= max(theirs, 0.0) + rounding


def part(mean: torch.Tensor, within: float = 2.0) -> Gathered:
    """Return what a group of four brings."""
    return Gathered({}, mean, sites=4, episodes=4, loss_sum=1.0, within=within)


@given(
    groups=st.integers(2, 5), place=st.integers(0, 4), lie=st.floats(-1e6, 1e6), seed=st.integers(0, 2**31)
)
def test_groups_that_lie_move_nothing_beyond_the_honest_ones(
    groups: int, place: int, lie: float, seed: int
) -> None:
    """Neither in the mean nor in what the clip follows; of an even number, that nothing moves counts."""
    training = settings(MEDIAN, f"training.byzantine={groups // 2}").training_of("reptile")
    chance = torch.Generator().manual_seed(seed)
    parts = [
        part(torch.randn(6, generator=chance, dtype=torch.float64), 1.0 + each) for each in range(groups)
    ]
    lying = {(place + each) % groups for each in range(groups // 2)}
    honest = [each for number, each in enumerate(parts) if number not in lying]
    bounds = torch.stack([each.mean for each in honest if each.mean is not None])
    shares = [each.within / 4 for each in honest]
    if groups % 2 == 0:
        bounds, shares = torch.cat([bounds, torch.zeros(1, 6)]), [*shares, training.clip_quantile]
    for number in lying:
        parts[number] = part(torch.full((6,), lie, dtype=torch.float64), lie)
    found = together(training, [[f"{number}"] for number in range(groups)], parts)
    assert found.mean is not None
    assert (found.mean >= bounds.min(0).values).all()
    assert (found.mean <= bounds.max(0).values).all()
    assert min(shares) - 1e-12 <= found.within / found.sites <= max(shares) + 1e-12


def test_without_enough_groups_nothing_moves() -> None:
    """Of two groups one has no sum: the other could be the liar's, so neither mean nor clip follow it."""
    training = settings(MEDIAN).training_of("reptile")
    lost = Gathered({"c": "the slot is given up"}, remarks=["the sum was impossible"])
    found = together(training, [["a", "b"], ["c", "d"]], [part(torch.ones(3)), lost])
    assert (found.mean, found.sites, found.within) == (None, 0, 0)
    assert found.missing.keys() == {"a", "b", "c", "d"}
    assert found.missing["c"] == "the slot is given up"
    words = "1 of 2 groups have a sum, and 2 are needed"
    assert found.remarks == ["group 2: the sum was impossible", words]
    three = together(training, [["a"], ["b"], ["c"]], [part(torch.ones(3)), part(torch.ones(3)), lost])
    assert three.mean is not None
    assert three.missing == lost.missing


def test_what_every_group_tells_is_told() -> None:
    """Two of five groups are lost: who is missing, who is barred, every remark, and what the others count."""
    training = settings(MEDIAN, "training.byzantine=1").training_of("reptile")
    lost = [
        Gathered({name: f"{name} is silent"}, barred={name: "it lied"}, remarks=[f"{name} is away"])
        for name in ("a", "b")
    ]
    heard = [part(torch.ones(3)) for _ in range(3)]
    found = together(training, [["a"], ["b"], ["c"], ["d"], ["e"]], [lost[0], *heard, lost[1]])
    assert found.missing == {"a": "a is silent", "b": "b is silent"}
    assert found.barred == {"a": "it lied", "b": "it lied"}
    assert found.remarks == ["group 1: a is away", "group 5: b is away"]
    assert (found.sites, found.episodes, found.loss_sum) == (12, 12, 3.0)


def test_a_bound_of_no_liars_is_borne_by_one_group() -> None:
    """With `byzantine` 0 a robust mean of one group is that group's."""
    training = settings(MEDIAN, "training.byzantine=0").training_of("reptile")
    found = together(training, [["a"], ["b"]], [part(torch.ones(3)), Gathered({"b": "silent"})])
    assert found.mean is not None
    assert found.mean.tolist() == [1.0, 1.0, 1.0]


@given(hospitals=st.integers(8, 60), byzantine=st.integers(1, 6))
def test_groups_are_disjoint_large_enough_and_made_of_names_alone(hospitals: int, byzantine: int) -> None:
    """Whatever the seed and the order; too few hospitals are an error that says how many are needed."""
    names = [f"h{number:03}" for number in range(hospitals)]
    over = (MEDIAN, f"training.byzantine={byzantine}")
    config, other = settings(*over), settings(*over, "seed=7")
    if hospitals < 2 * byzantine * LEAST:
        with pytest.raises(ConfigError, match=f"needs {2 * byzantine * LEAST} hospitals"):
            groups_of(config, "reptile", names)
        return
    groups = groups_of(config, "reptile", names)
    assert sorted(name for group in groups for name in group) == names
    assert min(map(len, groups)) >= LEAST
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert len(groups) in {2 * byzantine, 2 * byzantine + 1}
    assert groups_of(other, "reptile", names[::-1]) == groups


def test_what_groups_cannot_do_is_refused_before_a_run() -> None:
    """Seven hospitals, single deltas, cohorts that are drawn; a run that leaves seven of eight to train."""
    seven = [f"h{number}" for number in range(7)]
    with pytest.raises(ConfigError, match="one has 7"):
        groups_of(settings(MEDIAN), "reptile", seven)
    assert groups_of(settings(), "reptile", seven) == []
    with pytest.raises(ConfigError, match="multi-krum compares single deltas"):
        settings('training.aggregation="multi-krum"')
    with pytest.raises(ConfigError, match="whole groups"):
        settings(MEDIAN, "training.cohort=6")
    plain = settings('training.aggregation="multi-krum"', 'secure-aggregation.where="nowhere"')
    assert groups_of(plain, "reptile", seven) == []
    Plan(settings(MEDIAN, "experiment.shots=[]"), [*seven, "h7"]).check_groups()
    with pytest.raises(ConfigError, match="one has 7"):
        Plan(settings(MEDIAN, "adaptation.folds=0"), [*seven, "h7"]).check_groups()


def test_plain_and_secure_groups_end_alike_and_a_resumed_run_in_the_same_bits(
    five: Make, tmp_path: Path
) -> None:
    """All patients in every batch, a fixed clip: what is left is the rounding of secure sums."""
    nodes, keys = five(8)
    config = settings(MEDIAN, FIXED, "training.batch-size=0", "training.rounds=3")

    def stop(now: object) -> None:
        if len(getattr(now, "history", ())) == 1:
            raise KeyboardInterrupt

    with Lossy(nodes, NEVER) as grid:
        initial, plain = trained(grid, config, tmp_path / "plain", None)
        _, secure = trained(grid, config, tmp_path / "secure", keys)
        with pytest.raises(KeyboardInterrupt):
            trained(grid, config, tmp_path / "resumed", keys, on_round=stop)
        _, resumed = trained(grid, config, tmp_path / "resumed", keys)
        _, mean = trained(grid, settings(FIXED, "training.batch-size=0"), tmp_path / "mean", None)
    moved = float((plain.phi - initial).abs().max())
    assert float((secure.phi - plain.phi).abs().max()) < 0.05 * moved
    assert float((mean.phi - plain.phi).abs().max()) > 0.2 * moved, "a median of groups is no mean"
    assert torch.equal(resumed.phi, secure.phi)
    assert [one["sites"] for one in secure.history] == [8, 8, 8]


def test_another_run_asks_the_same_groups_and_waits_for_nobody(five: Make, tmp_path: Path) -> None:
    """Hospitals with policies take part in a second run with another seed; each hears of its group alone."""
    nodes, keys = five(8)
    held: list[NodeConfig] = []
    for node in nodes:
        policy = tmp_path / f"{node['site']}.toml"
        policy.write_text(guarded())
        held.append({**node, "policy": str(policy)})
    told: set[frozenset[str]] = set()

    class Heard(Lossy):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type == wire.ADVERTISE:
                    told.add(frozenset(wire.read_secured(message).identities))
            return super().push_messages(messages)

    for seed in (0, 1):
        with Heard(held, NEVER) as grid:
            config = settings(MEDIAN, f"seed={seed}", "training.rounds=2", "experiment.shots=[]")
            _, end = trained(grid, config, tmp_path / str(seed), keys)
        assert [one["sites"] for one in end.history] == [8, 8], end.history
    names = sorted(str(node["site"]) for node in nodes)
    assert told == {frozenset(names[:4]), frozenset(names[4:])}


def test_a_mute_group_does_not_stop_the_others_of_three(five: Make, tmp_path: Path) -> None:
    """Two of a group's four never mask: two groups go on, and the round says what is missing."""
    nodes, keys = five(12)
    names = sorted(str(node["site"]) for node in nodes)
    with Lossy(nodes, lambda what, site, turn: what == wire.TRAIN and site in names[:2]) as grid:
        _, end = trained(grid, settings(MEDIAN, "training.rounds=1"), tmp_path, keys)
    (one,) = end.history
    assert one["sites"] == 8
    assert "delta-norm" in one


def test_a_median_of_large_networks() -> None:
    """More numbers than one quantile of PyTorch's takes."""
    training = settings(MEDIAN).training_of("reptile")
    one = torch.zeros(6_000_000)
    found = together(training, [["a"], ["b"], ["c"]], [part(one + each) for each in range(3)])
    assert found.mean is not None
    assert float(found.mean.min()) == float(found.mean.max()) == 1.0
