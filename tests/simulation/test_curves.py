"""Curves of a simulated run: their areas are the figures that it tells, their bins what was stated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.config import load
from common.seeds import Draws
from common.tasks import classification, kind_of
from server.report.board import Board
from simulation.curves import Answered, Curve, mean_roc, reliability, roc, thinned
from simulation.run import simulate
from tests.simulation.test_few_shot_runs import CLASSES, SMALL, Silent, hospital

REPLICATES = 200
EXACTLY = 1e-9
WRITTEN = 1e-5
"""How near an area is whose points are written with six decimals."""


def area(curve: Curve) -> float:
    """Return the area under a curve."""
    return float(np.trapezoid(curve[1], curve[0]))


def answered(
    stated: Sequence[float] | NDArray[np.float64],
    truth: Sequence[float] | NDArray[np.float64],
    *,
    patients: Sequence[int] | None = None,
    draws: int = 1,
) -> Answered:
    """Return one hospital's answers to one question, the same in every draw."""
    count = len(stated)
    return Answered(
        np.tile(np.array(stated, float), draws),
        np.tile(np.array(truth, float), draws),
        np.zeros(count * draws, np.int64),
        np.tile(np.arange(count) if patients is None else np.array(patients), draws),
        np.repeat(np.arange(draws), count),
    )


def chance(seed: int, count: int, levels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return so many probabilities of few levels, so that some are equal, and truths of both kinds."""
    drawn = np.random.default_rng(seed)
    return drawn.integers(0, levels, count) / levels, np.append(drawn.integers(0, 2, count - 2), [0.0, 1.0])


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 30))
def test_the_area_under_a_curve_is_the_auroc(seed: int, count: int, levels: int) -> None:
    """Ties count half."""
    stated, truth = chance(seed, count, levels)
    (expected,) = classification.auroc(stated, truth, np.ones((1, count)))
    fpr, tpr = roc(stated, truth)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert min(np.diff(fpr).min(), np.diff(tpr).min()) >= 0
    assert area((fpr, tpr)) == pytest.approx(expected, abs=EXACTLY)


def test_a_mean_curve_lies_between_its_parts() -> None:
    """One hospital that ranks everything right, one that cannot tell: half way at every rate."""
    fpr, tpr = mean_roc([answered([0.9, 0.1], [1, 0]), answered([0.5, 0.5], [1, 0])])
    assert list(zip(fpr.tolist(), tpr.tolist(), strict=True)) == [(0, 0), (0, 0.5), (1, 1), (1, 1)]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=4), st.integers(0, 10**6))
def test_the_area_under_a_mean_is_the_mean_of_the_areas(sizes: list[int], seed: int) -> None:
    """Of hospitals of any size, each of which counts alike."""
    told = [answered(*chance(seed + place, count, 12)) for place, count in enumerate(sizes)]
    areas = [area(roc(one.stated, one.truth)) for one in told]
    assert area(mean_roc(told)) == pytest.approx(np.mean(areas), abs=EXACTLY)


def test_a_question_that_all_cases_answer_alike_counts_nowhere() -> None:
    """As in the AUROC, which is the mean over the questions that remain."""
    two = answered([0.9, 0.1, 0.2], [1, 0, 0])
    both = Answered(
        np.append(two.stated, [0.3, 0.4]),
        np.append(two.truth, [0.0, 0.0]),
        np.append(two.question, [1, 1]),
        np.append(two.patient, [0, 1]),
        np.append(two.draw, [0, 0]),
    )
    assert area(mean_roc([both])) == area(mean_roc([two])) == 1.0


def test_a_long_curve_is_thinned_and_keeps_its_area() -> None:
    """To 201 points, from whose polygon no more than 0.0025 is missing; a short one stays as it is."""
    drawn = np.random.default_rng(0)
    truth = drawn.integers(0, 2, 5000)
    whole = roc(drawn.normal(size=5000) + truth, truth.astype(float))
    few = thinned(whole)
    assert len(few[0]) == 201 < len(whole[0])
    assert abs(area(few) - area(whole)) < 0.0025
    assert thinned(few) is few


def bins(told: Sequence[Answered]) -> list[dict[str, float | int]]:
    """Return the bins of hospitals' answers."""
    draws = [Draws.of_seed(0, str(place)) for place in range(len(told))]
    return reliability(told, REPLICATES, draws)


def test_the_bins_of_a_known_sample() -> None:
    """Of 60 that were stated 0.1 six came true, of 40 that were stated 0.8 all; in two hospitals."""
    low = answered([0.1] * 60, [1] * 6 + [0] * 54)
    first, second = bins([low, answered([0.8] * 40, [1] * 40)])
    assert (first["observed"], first["answers"]) == (0.1, 60)
    assert (second["observed"], second["ci_high"], second["answers"]) == (1.0, 1.0, 40)
    assert [first["stated"], second["stated"]] == pytest.approx([0.1, 0.8])
    assert second["ci_low"] == pytest.approx(0.025 ** (1 / 40))
    error = 1.96 * (0.1 * 0.9 / 60) ** 0.5
    assert first["ci_low"] == pytest.approx(0.1 - error, abs=0.025)
    assert first["ci_high"] == pytest.approx(0.1 + error, abs=0.025)


def test_a_bin_in_which_nothing_came_true_is_not_certain() -> None:
    """Five patients in each of eight draws are five: 0 of 5 is below 0.522, as Clopper's tables have it."""
    (one,) = bins([answered([0.1] * 5, [0] * 5, draws=8)])
    assert (one["observed"], one["ci_low"], one["answers"]) == (0.0, 0.0, 40)
    assert one["ci_high"] == pytest.approx(0.5218, abs=1e-4)


def test_bins_hold_equally_many_and_fewer_cases_have_fewer() -> None:
    """Ten bins of a hundred each; 35 cases have three; draws make no more of them."""
    stated = np.linspace(0, 1, 1000)
    truth = (np.random.default_rng(0).random(1000) < stated).astype(float)
    found = bins([answered(stated, truth)])
    assert [one["answers"] for one in found] == [100] * 10
    assert [one["stated"] for one in found] == sorted(one["stated"] for one in found)
    assert sum(one["ci_low"] <= one["stated"] <= one["ci_high"] for one in found) >= 8
    assert len(bins([answered(stated[:35], truth[:35], draws=4)])) == 3


def test_patients_are_resampled_whole_in_bins_too() -> None:
    """Ten copies of every case of a patient are no ten patients: the intervals stay as wide."""
    stated = np.repeat(np.arange(1, 11) / 11, 20)
    truth = (np.random.default_rng(1).random(200) < stated).astype(float)
    once = bins([answered(stated, truth)])
    copies = bins([answered(np.tile(stated, 10), np.tile(truth, 10), patients=list(range(200)) * 10)])
    assert [one.pop("answers") * 10 for one in once] == [one.pop("answers") for one in copies]
    for mine, theirs in zip(once, copies, strict=True):
        assert mine == pytest.approx(theirs)


def experiment(parent: Path, out: Path, *over: str) -> dict[str, Any]:
    """Return the results of a run over three hospitals with five classes."""
    quick = ("experiment.publish=false", "adaptation.folds=0", "training.rounds=2")
    config = load(None, [*SMALL, f"data.hospitals={parent}", *quick, *over])
    return dict(simulate(config, out, Silent(), command="test"))


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Return the folder of three hospitals of five classes."""
    for number in (1, 2, 3):
        hospital(tmp_path / "in" / f"site-{number}", CLASSES, seed=number)
    return tmp_path / "in"


@pytest.mark.parametrize(
    "over",
    [
        ('task.classes=["a", "b"]',),
        ("experiment.replicates=150",),
        ("training.way=2", "training.shot=1", "training.query=3", "experiment.way=2"),
    ],
    ids=["two classes", "five classes", "two of five in each draw"],
)
def test_the_areas_are_the_figures_of_the_run(parent: Path, tmp_path: Path, over: Sequence[str]) -> None:
    """Under each algorithm's curve at each K lies its mean AUROC, over hospitals, draws and classes."""
    found = experiment(parent, tmp_path / "out", *over, 'experiment.algorithms=["reptile", "protonet"]')
    board = Board.of(found["rows"], "auroc")
    measured = [(name, shot) for shot in board.shots for name in board.measured(shot)]
    assert [(one["algorithm"], one["shot"]) for one in found["curves"]] == measured
    for one in found["curves"]:
        mean = board.mean(one["algorithm"], one["shot"])
        assert mean is not None
        curve = np.array(one["roc"]["fpr"]), np.array(one["roc"]["tpr"])
        assert area(curve) == pytest.approx(mean.value, abs=0.0025 if len(curve[0]) == 201 else WRITTEN)
        assert one["hospitals"] == 3
    assert found["curves"] == json.loads((tmp_path / "out" / "results.json").read_text())["curves"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'aria-label="ROC curves' in page
    assert 'aria-label="Reliability curves' in page
    kept = list((tmp_path / "out" / "predictions").rglob("*.npz"))
    assert len(kept) == 3 * len(measured)
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}


def test_a_resumed_run_has_the_same_curves_and_one_without_predictions_has_none(
    parent: Path, tmp_path: Path
) -> None:
    """What is not asked again is read again; where a part is gone, nothing is said of its K."""
    out = tmp_path / "out"
    over = ('task.classes=["a", "b"]', 'experiment.algorithms=["reptile"]')
    first = experiment(parent, out, *over)["curves"]
    page = (out / "report.html").read_text()
    for path in (out / "predictions").rglob("3.npz"):
        path.unlink()
    assert experiment(parent, out, *over)["curves"] == [one for one in first if one["shot"] != 3]
    for path in (out / "predictions").rglob("*.npz"):
        path.unlink()
    assert experiment(parent, out, *over)["curves"] == []
    assert "ROC" in page
    assert 'aria-label="ROC' not in (out / "report.html").read_text()


@pytest.mark.parametrize("kind", ["regression", "segmentation"])
def test_a_task_without_probabilities_has_no_questions(kind: str) -> None:
    """A number or a mask is no answer to one."""
    assert (
        kind_of(
            load(
                None,
                [
                    f"task.kind={kind}",
                    *(
                        ["model.name=unet"]
                        if kind == "segmentation"
                        else ["task.classes=[]", "task.center=1"]
                    ),
                ],
            ).task
        ).questions
        is None
    )
