"""Judging: draws paired over algorithms, patients resampled whole, and a reason where K is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.dataset import Census, Hospital
from client.few_shot import LEAST_TEST_PATIENTS, Judge, Question, cannot_judge
from common import wire
from common.algorithms import ALGORITHMS, Algorithm
from common.algorithms.algorithm import Predictor, fine_tune
from common.cases import Cases
from common.config import Config, load
from common.initialise import learner_for, learner_of_algorithm
from common.inner_loop import InnerLoop
from common.learner import Learner
from common.seeds import Draws
from common.weights import Weights

RECIPE = InnerLoop(steps=3, lr=0.05)
CLASSES = ("normal", "nodule")


def settings(*overrides: str) -> Config:
    """Return a configuration for small tables."""
    return load(None, ["model.name=mlp", "model.width=8", 'task.classes=["normal", "nodule"]', *overrides])


@pytest.fixture(scope="module")
def learner() -> Learner:
    """Return a small network for cases of two features."""
    return learner_for(settings(), (2,), torch.device("cpu"))


def cases(normal: int, nodule: int, *, seed: int, first: int = 0) -> Cases:
    """Return one case per patient, numbered from `first`, with a feature that tells the class often."""
    labels = torch.tensor([0] * normal + [1] * nodule)
    inputs = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(seed))
    inputs[:, 0] += 1.5 * labels
    return Cases(inputs, labels, torch.arange(first, first + len(labels)))


def hospital(adaptation: Cases, test: Cases, name: str = "site-1") -> Hospital:
    """Return a hospital with these two sides."""
    return Hospital(name, adaptation, test, Census(len(adaptation) + len(test), {}, 0, {}, ()), b"")


PHI = learner_for(settings(), (2,), torch.device("cpu")).weights()
USUAL = hospital(cases(12, 12, seed=1), cases(15, 10, seed=2, first=24))


def ask(
    shot: int = 3, recipe: InnerLoop | None = RECIPE, *, draws: int = 4, replicates: int = 20
) -> Question:
    """Return a question with few draws."""
    return Question(shot, recipe, draws, replicates, purpose="test")


def supports(
    learner: Learner, algorithm: Algorithm, question: Question, place: Hospital, *overrides: str
) -> list[list[int]]:
    """Return the patients of every support that `algorithm` is given whole."""
    seen: list[list[int]] = []

    def adapt(learner: Learner, phi: Weights, support: Cases, recipe: InnerLoop, draws: Draws) -> Predictor:
        if len(support) == 2 * question.shot:
            seen.append(support.patients.tolist())
        return fine_tune(learner, phi, support, recipe, draws)

    Judge(replace(algorithm, adapt=adapt), learner, PHI, place, settings(*overrides), CLASSES).answer(
        question
    )
    return seen


def test_every_algorithm_and_recipe_adapts_to_the_same_draws(learner: Learner) -> None:
    """With and without the safeguard, by gentle or long recipes: the same patients draw by draw."""
    other = InnerLoop(steps=9, lr=0.5, optimizer="adam", scope="adapter")
    usual = supports(learner, ALGORITHMS["reptile"], ask(), USUAL)
    assert len(usual) == 4
    assert len({tuple(one) for one in usual}) == 4
    assert usual == supports(learner, ALGORITHMS["local-only"], ask(recipe=other), USUAL)
    assert usual == supports(learner, ALGORITHMS["fedavg"], ask(), USUAL, "adaptation.safeguard=false")
    assert usual[:2] == supports(learner, ALGORITHMS["pooled"], ask(draws=2), USUAL)


def test_seed_secret_and_purpose_each_draw_their_own(learner: Learner) -> None:
    """Choosing a recipe never sees the draws that judge it; the hospital's secret draws, not its name."""
    algorithm = ALGORITHMS["reptile"]
    found = [
        supports(learner, algorithm, ask(), USUAL),
        supports(learner, algorithm, ask(), USUAL, "seed=1"),
        supports(learner, algorithm, ask(), replace(USUAL, secret=b"another")),
        supports(learner, algorithm, replace(ask(), purpose="choose"), USUAL),
    ]
    assert len({str(one) for one in found}) == 4


def test_judging_twice_is_judging_once(learner: Learner) -> None:
    """Every draw and every replicate is the same to the last bit."""
    first, second = (
        Judge(ALGORITHMS["reptile"], learner, PHI, USUAL, settings(), CLASSES).answer(ask()) for _ in range(2)
    )
    assert first.draws.keys() == second.draws.keys()
    for name in first.draws:
        np.testing.assert_array_equal(first.draws[name], second.draws[name])
        np.testing.assert_array_equal(first.replicates[name], second.replicates[name])
    assert (first.hurt, first.fell_back) == (second.hurt, second.fell_back)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_figures_are_finite_and_shares_are_shares(name: str) -> None:
    """One figure per draw and per replicate, for every algorithm with its own network."""
    learner = learner_of_algorithm(settings(), name, (2,), torch.device("cpu"))
    found = Judge(ALGORITHMS[name], learner, learner.initial, USUAL, settings(), CLASSES).answer(ask())
    assert found.left_out == ""
    assert 0 <= found.hurt <= 1
    assert 0 <= found.fell_back <= 1
    assert {values.shape for values in found.draws.values()} == {(4,)}
    assert {values.shape for values in found.replicates.values()} == {(20,)}
    assert all(np.isfinite(values).all() for values in (*found.draws.values(), *found.replicates.values()))


@pytest.mark.parametrize("question", [ask(shot=0), ask(recipe=None)])
def test_not_adapting_has_a_single_draw_and_hurts_nobody(learner: Learner, question: Question) -> None:
    """K = 0, or no recipe: one figure, which is phi's own accuracy."""
    found = Judge(ALGORITHMS["reptile"], learner, PHI, USUAL, settings(), CLASSES).answer(question)
    positive = learner.logits(PHI, USUAL.test.inputs)[:, 0] > 0
    expected = float((positive.long() == USUAL.test.labels).double().mean())
    assert found.draws["accuracy"].tolist() == pytest.approx([expected])
    assert (found.hurt, found.fell_back) == (0.0, 0.0)


def test_all_cases_can_be_the_support(learner: Learner) -> None:
    """The whole adaptation side, as a hospital would use its own model."""
    found = Judge(ALGORITHMS["reptile"], learner, PHI, USUAL, settings(), CLASSES).answer(
        ask(shot=wire.ALL_CASES)
    )
    assert found.left_out == ""
    assert np.isfinite(found.draws["auroc"]).all()


def test_patients_are_resampled_whole(learner: Learner) -> None:
    """Three equal images of every test patient leave each replicate as one image does."""
    thrice = Cases(*(values.repeat(3, *[1] * (values.dim() - 1)) for values in _columns(USUAL.test)))
    one, three = (
        Judge(ALGORITHMS["reptile"], learner, PHI, replace(USUAL, test=test), settings(), CLASSES).answer(
            ask(replicates=50)
        )
        for test in (USUAL.test, thrice)
    )
    for name, values in one.replicates.items():
        np.testing.assert_allclose(three.replicates[name], values, rtol=1e-5)
    assert one.replicates["accuracy"].std() > 0


def _columns(cases: Cases) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return cases.inputs, cases.labels, cases.patients


def test_differences_between_algorithms_are_paired(learner: Learner) -> None:
    """The same phi judged twice under other names differs by nothing in every single replicate."""
    found = [
        Judge(ALGORITHMS[name], learner, PHI, USUAL, settings(), CLASSES).answer(ask(recipe=None))
        for name in ("reptile", "pooled")
    ]
    np.testing.assert_array_equal(found[0].replicates["auroc"], found[1].replicates["auroc"])


@pytest.mark.parametrize(
    ("place", "shot", "reason"),
    [
        (hospital(cases(9, 2, seed=1), USUAL.test), 3, "fewer than 3 patients of class nodule to adapt with"),
        (hospital(USUAL.adaptation, cases(9, 4, seed=1)), 1, "fewer than 5 test patients of class nodule"),
        (hospital(USUAL.adaptation, cases(9, 0, seed=1)), 0, "fewer than 5 test patients of class nodule"),
        (hospital(cases(9, 0, seed=1), USUAL.test), 0, ""),
        (hospital(USUAL.adaptation, cases(5, 5, seed=1)), 12, ""),
    ],
)
def test_a_shot_that_cannot_be_judged_says_why(
    learner: Learner, place: Hospital, shot: int, reason: str
) -> None:
    """Too few patients of a class to adapt with or to test on; K = 0 needs none to adapt with."""
    assert LEAST_TEST_PATIENTS == 5
    assert cannot_judge(place, CLASSES, shot) == reason
    if reason:
        found = Judge(ALGORITHMS["reptile"], learner, PHI, place, settings(), CLASSES).answer(ask(shot=shot))
        assert found == wire.Judgement({}, {}, 0.0, 0.0, left_out=reason)


def test_test_patients_are_counted_not_images() -> None:
    """Twenty images of four patients are four."""
    few = Cases(torch.zeros(40, 2), torch.arange(40) % 2, torch.arange(40) % 8)
    assert cannot_judge(hospital(USUAL.adaptation, few), CLASSES, 1).startswith("fewer than 5 test patients")
