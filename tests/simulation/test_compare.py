"""Comparing algorithms: the same number of gradient steps for all, and paired differences on average."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.algorithms import ALGORITHMS
from common.config import load
from common.wire import Judgement
from server.experiment.plan import Cell
from server.experiment.results import mean_differences
from simulation import cli
from simulation.compare import equal_budget, overrides, steps_a_round

TRAINED = sorted(name for name in ALGORITHMS if ALGORITHMS[name].local_update and name != "fedbn")


def test_a_gradient_step_is_the_gradient_of_a_batch() -> None:
    """Three episodes of four inner steps, two sites: MAML adds one for each episode, ProtoNet takes one."""
    config = load(None, ["training.episodes=3", "training.inner-steps=4"])
    counted = {name: steps_a_round(config, name, 2) for name in ("reptile", "maml", "protonet", "pooled")}
    assert counted == {"reptile": 2 * 3 * 4, "maml": 2 * 3 * 5, "protonet": 2 * 3, "pooled": 3 * 4}
    assert steps_a_round(load(None, ["training.cohort=3"]), "reptile", 9) == 3 * 10


@settings(deadline=None, max_examples=30)
@given(st.permutations(TRAINED), st.integers(2, 9), st.integers(1, 50), st.integers(1, 12), st.integers(1, 4))
def test_all_take_as_many_steps_as_the_first(
    names: list[str], sites: int, rounds: int, inner: int, episodes: int
) -> None:
    """Never fewer, and less than one round more."""
    keys = [
        f"phantoms.sites={sites}",
        f"training.rounds={rounds}",
        f"training.inner-steps={inner}",
        f"training.episodes={episodes}",
        *overrides(",".join(names)),
    ]
    config = load(None, keys)
    equal = load(None, [*keys, *equal_budget(config)])
    budget = rounds * steps_a_round(config, names[0], sites - 1)
    for name in names:
        a_round = steps_a_round(equal, name, sites - 1)
        assert 0 <= equal.training_of(name).rounds * a_round - budget < a_round
    assert equal.training_of(names[0]).rounds == rounds


def test_what_trains_nothing_has_no_budget() -> None:
    """Local-only alone asks for no rounds."""
    assert equal_budget(load(None, overrides("local-only"))) == []


def judged(values: list[float], replicates: list[float]) -> Judgement:
    """Return a judgement with these accuracies per draw and per replicate."""
    return Judgement({"accuracy": np.array(values)}, {"accuracy": np.array(replicates)}, 0.0, 0.0)


def test_a_mean_difference_is_over_hospitals_that_have_both() -> None:
    """Gains .2 and .4, a third hospital without the reference: .3; replicates .1 and .3 apart: .2 always."""
    steps = [k / 40 for k in range(41)]
    answers = {
        Cell("reptile", "a", 1): judged([0.8], [value + 0.1 for value in steps]),
        Cell("reptile", "b", 1): judged([0.9], [value + 0.3 for value in steps]),
        Cell("reptile", "c", 1): Judgement({}, {}, 0.0, 0.0, left_out="too few"),
        Cell("maml", "a", 1): judged([0.6], steps),
        Cell("maml", "b", 1): judged([0.5], steps),
        Cell("maml", "c", 1): judged([0.5], steps),
    }
    (row,) = mean_differences(answers, "reptile")
    assert row == {
        "algorithm": "maml",
        "shot": 1,
        "reference": "reptile",
        "metric": "accuracy",
        "hospitals": 2,
        "mean": pytest.approx(0.3),
        "ci_low": pytest.approx(0.2),
        "ci_high": pytest.approx(0.2),
    }


def test_the_command_compares_at_equal_budget(
    table_hospitals: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One report with every algorithm; the budget is in results.json and on the terminal."""
    keys = ('task.classes=["normal", "nodule"]', "model.name=mlp", "model.width=8", "training.rounds=3")
    small = (
        "adaptation.folds=0",
        "experiment.held-out=[]",
        "experiment.draws=2",
        "experiment.replicates=100",
    )
    sets = [
        part for key in (f"data.hospitals={table_hospitals(3)}", *keys, *small) for part in ("--set", key)
    ]
    words = ["compare", "--algorithms", "reptile, protonet,maml", "--budget", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["zamenis-simulate", *words, "--workers", "1", *sets])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["algorithm"] for row in found["rows"]} == {"reptile", "protonet", "maml"}
    budget = 3 * 2 * 10
    assert found["gradient_steps"] == {
        "reptile": budget,
        "protonet": budget,
        "maml": math.ceil(budget / (2 * 11)) * 2 * 11,
    }
    told = " ".join(capsys.readouterr().out.split())
    assert "reptile less the others, mean over hospitals" in told
    assert "Gradient steps of a meta-training: reptile 60, protonet 60, maml 66." in told


def test_an_unknown_algorithm_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With those that there are."""
    monkeypatch.setattr(sys, "argv", ["zamenis-simulate", "compare", "--algorithms", "reptil"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "reptil is not a known algorithm; known: reptile" in " ".join(capsys.readouterr().err.split())
