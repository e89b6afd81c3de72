"""From judgements to plain data: each figure by hand, and nothing that JSON cannot say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.config import load
from common.inner_loop import InnerLoop
from common.wire import Census, Description, Judgement
from server.app import MetaTrained
from server.experiment.conduct import Outcome
from server.experiment.plan import Cell, Training
from server.experiment.results import differences, results, rows

LOWER = frozenset({"brier"})
STEPS = np.arange(41) / 40
"""Replicates 0, 1/40, ... 1: the percentile p of 41 such values is exactly p / 100."""


def judged(
    auroc: list[float],
    brier: list[float] | None = None,
    *,
    replicates: list[float] | None = None,
    hurt: float = 0.0,
    fell_back: float = 0.0,
) -> Judgement:
    """Return a judgement with these figures per draw."""
    by_draw = {"auroc": np.array(auroc), "brier": np.array(brier or [0.2] * len(auroc))}
    spread = STEPS if replicates is None else np.array(replicates)
    return Judgement(by_draw, dict.fromkeys(by_draw, spread), hurt, fell_back)


def left_out(reason: str) -> Judgement:
    """Return what a hospital says that cannot judge."""
    return Judgement({}, {}, 0.0, 0.0, left_out=reason)


def test_a_row_is_the_mean_its_interval_and_the_worst_draw() -> None:
    """Draws .5, .7, .9: mean .7, worst .5; of a loss .1, .2, .6: mean .3, worst .6; interval .025 to .975."""
    cell = Cell("reptile", "site-1", 5)
    auroc, brier = rows({cell: judged([0.5, 0.7, 0.9], [0.1, 0.2, 0.6])}, LOWER)
    common = {"algorithm": "reptile", "site": "site-1", "shot": 5, "draws": 3}
    interval = {"ci_low": pytest.approx(0.025), "ci_high": pytest.approx(0.975)}
    assert auroc == {**common, **interval, "metric": "auroc", "mean": pytest.approx(0.7), "worst": 0.5}
    assert brier == {**common, **interval, "metric": "brier", "mean": pytest.approx(0.3), "worst": 0.6}


def test_a_replicate_without_a_class_is_left_out_of_the_interval() -> None:
    """Two unknown replicates among the steps leave the interval as it is."""
    (row, _) = rows({Cell("reptile", "a", 0): judged([0.5], replicates=[np.nan, *STEPS, np.nan])}, LOWER)
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(0.025), pytest.approx(0.975))


def test_a_metric_that_is_unknown_has_no_row() -> None:
    """One draw that is not a number takes its metric out, and no other."""
    found = rows({Cell("reptile", "a", 5): judged([0.5, np.nan])}, LOWER)
    assert [row["metric"] for row in found] == ["brier"]


def test_a_difference_is_reference_minus_other_replicate_by_replicate() -> None:
    """Means .8 - .6; the replicates lie .1 apart everywhere, so the interval is .1 to .1."""
    answers = {
        Cell("reptile", "a", 5): judged([0.7, 0.9], replicates=list(STEPS + 0.1)),
        Cell("fedavg", "a", 5): judged([0.5, 0.7]),
    }
    found = [one for one in differences(answers, "reptile") if one["metric"] == "auroc"]
    assert found == [
        {
            "algorithm": "fedavg",
            "site": "a",
            "shot": 5,
            "reference": "reptile",
            "metric": "auroc",
            "mean": pytest.approx(0.2),
            "ci_low": pytest.approx(0.1),
            "ci_high": pytest.approx(0.1),
        }
    ]


def test_a_difference_to_an_unknown_figure_is_none() -> None:
    """Whichever side it is on."""
    unknown, known = judged([np.nan]), judged([0.5])
    for mine, theirs in ((unknown, known), (known, unknown)):
        answers = {Cell("reptile", "a", 5): mine, Cell("fedavg", "a", 5): theirs}
        assert [one["metric"] for one in differences(answers, "reptile")] == ["brier"]


def outcome() -> Outcome:
    """Return an outcome of two algorithms at two sites, one of which cannot judge K = 5."""
    reason = "2 test patients of class nodule; 5 needed"
    answers = {
        Cell("reptile", "a", 0): judged([0.6]),
        Cell("reptile", "a", 5): judged([0.5, 0.7], hurt=0.5, fell_back=0.25),
        Cell("reptile", "b", 5): left_out(reason),
        Cell("fedavg", "a", 0): judged([0.6], replicates=[np.nan, *STEPS[1:]]),
        Cell("fedavg", "a", 5): judged([np.nan, 0.7]),
        Cell("fedavg", "b", 5): left_out(reason),
    }
    recipe = InnerLoop(steps=50, lr=0.01, scope="adapter")
    phi = torch.zeros(3)
    trained = {
        Training("reptile", ("a",)): MetaTrained(
            phi, [{"round": 1, "sites": 2, "loss": 0.7}, {"round": 2, "sites": 2, "loss": 0.6}]
        ),
        Training("reptile", ("a", "b")): MetaTrained(phi, [{"round": 1, "sites": 2, "loss": 0.5}]),
        Training("reptile", ()): MetaTrained(phi, [{"round": 1, "sites": 2, "loss": 0.4}]),
    }
    census = Census(1, (2, 1), {"normal": (2, 1)}, {})
    return Outcome(
        answers,
        {Cell("reptile", "a", 5): recipe, Cell("fedavg", "a", 5): None},
        trained,
        {"a": Description("a", (4,), "digest", census)},
        3,
        {"total_s": 1.0},
    )


def test_everything_is_plain_data_without_a_nan() -> None:
    """JSON takes it in its strict form and gives it back equal."""
    found = results(load(None), outcome(), command="zamenis-simulate run", workers=1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["hospitals"][0]["site"] == "a"
    assert found["parameters"] == 3
    assert found["gradient_steps"] == {"reptile": 2 * 2 * 10}


def test_hurt_tells_of_adapting_alone() -> None:
    """K = 0 and what was left out have no share."""
    found = results(load(None), outcome(), command="", workers=1)["hurt"]
    cells = [("reptile", 0.5, 0.25), ("fedavg", 0.0, 0.0)]
    assert found == [
        {"algorithm": name, "site": "a", "shot": 5, "share": share, "fell_back": back}
        for name, share, back in cells
    ]


def test_a_reason_is_told_once_per_site_and_shot() -> None:
    """Not once per algorithm."""
    found = results(load(None), outcome(), command="", workers=1)["left_out"]
    assert found == [{"site": "b", "shot": 5, "reason": "2 test patients of class nodule; 5 needed"}]


def test_recipes_and_rounds_say_what_was_used() -> None:
    """Not adapting is scope none; rounds are those of trainings without exactly the held-out hospital."""
    found = results(load(None), outcome(), command="", workers=1)
    assert [(one["scope"], one["inner_lr"], one["inner_steps"]) for one in found["recipes"]] == [
        ("adapter", 0.01, 50),
        ("none", 0.0, 0),
    ]
    assert found["rounds"] == [
        {"algorithm": "reptile", "site": "a", "round": 1, "sites": 2, "loss": 0.7},
        {"algorithm": "reptile", "site": "a", "round": 2, "sites": 2, "loss": 0.6},
    ]
