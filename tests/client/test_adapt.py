"""Adapting goes only as far as the support itself shows a gain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from client.adapt import SHARES, adapt_safely
from common.algorithms.algorithm import Adapt, Predictor, fine_tune
from common.cases import Cases
from common.config import load
from common.initialise import learner_for
from common.inner_loop import InnerLoop, inner_loop
from common.learner import Learner
from common.seeds import Draws
from common.weights import Weights

RECIPE = InnerLoop(steps=30, lr=0.05, optimizer="adam")
CONFIG = load(None, ["model.name=mlp", "model.width=8"])


@pytest.fixture(scope="module")
def learner() -> Learner:
    """Return a small network for cases of two features."""
    return learner_for(CONFIG, (2,), torch.device("cpu"))


def draws(seed: int = 0) -> Draws:
    """Return draws of its own."""
    return Draws.of_seed(seed)


def separable(count: int, seed: int) -> Cases:
    """Return one case per patient, classes in turn, whose first feature is at -2 or 2, give or take."""
    labels = torch.arange(count) % 2
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    inputs[:, 0] = 4.0 * labels - 2.0 + 0.3 * inputs[:, 0]
    return Cases(inputs, labels, torch.arange(count))


@pytest.fixture(scope="module")
def untrained() -> Weights:
    """Return the weights that the network begins with; a learner's own are overwritten in use."""
    return learner_for(CONFIG, (2,), torch.device("cpu")).weights()


@pytest.fixture(scope="module")
def good_phi(learner: Learner, untrained: Weights) -> Weights:
    """Return weights that tell the separable cases apart, as meta-training would leave them."""
    settings = InnerLoop(steps=60, lr=0.02, optimizer="adam")
    phi, _ = inner_loop(learner, untrained, separable(200, seed=99), settings, draws())
    return phi


@pytest.fixture(scope="module")
def mild_phi(learner: Learner, untrained: Weights) -> Weights:
    """Return weights that lean the right way without being sure."""
    settings = InnerLoop(steps=15, lr=0.02, optimizer="adam")
    phi, _ = inner_loop(learner, untrained, separable(200, seed=99), settings, draws())
    return phi


def always(output: Callable[[Tensor], Tensor]) -> Adapt:
    """Return a way to adapt that ends in `output` whatever the support."""

    def adapt(learner: Learner, phi: Weights, support: Cases, recipe: InnerLoop, draws: Draws) -> Predictor:
        return output

    return adapt


def zeroed(learner: Learner) -> Weights:
    """Return weights under which every logit is 0."""
    return {name: torch.zeros_like(value) for name, value in learner.weights().items()}


def test_where_nothing_is_gained_phi_is_kept_to_the_last_bit(learner: Learner, good_phi: Weights) -> None:
    """Adapted predictions that contradict true labels get no share: predictions are zero-shot's own."""
    support, others = separable(10, seed=1), separable(40, seed=2).inputs
    opposite = always(lambda inputs: -learner.logits(good_phi, inputs))
    adapted = adapt_safely(opposite, learner, good_phi, support, RECIPE, draws())
    assert adapted.share == 0
    assert torch.equal(adapted.predict(others), learner.logits(good_phi, others))


def test_where_adapting_is_right_it_is_taken_whole(learner: Learner) -> None:
    """From phi = 0, true logits 3x lower log(1 + exp(-share * 3|x|)) with every bit of share."""
    support = separable(10, seed=1)
    right = always(lambda inputs: 3.0 * inputs[:, :1])
    adapted = adapt_safely(right, learner, zeroed(learner), support, RECIPE, draws())
    assert adapted.share == 1
    assert torch.equal(adapted.predict(support.inputs), 3.0 * support.inputs[:, :1])


def test_a_share_between_mixes_logits(learner: Learner) -> None:
    """Logit a everywhere, 3 of 4 labels positive: a * share is best nearest log 3, here at a half."""
    logit = 2 * torch.log(torch.tensor(3.0)).item()
    labels = torch.tensor([0, 0, 0, *[1] * 9])
    support = Cases(torch.zeros(12, 2), labels, torch.arange(12))
    constant = always(lambda inputs: torch.full((len(inputs), 1), logit))
    adapted = adapt_safely(constant, learner, zeroed(learner), support, RECIPE, draws())
    assert adapted.share == 0.5
    assert adapted.predict(torch.zeros(3, 2)).flatten().tolist() == pytest.approx([logit / 2] * 3)


def test_a_tie_goes_to_the_smaller_share(learner: Learner, good_phi: Weights) -> None:
    """Adapting that changes nothing is no adapting."""
    same = always(lambda inputs: learner.logits(good_phi, inputs))
    assert adapt_safely(same, learner, good_phi, separable(10, seed=1), RECIPE, draws()).share == 0


def test_a_phi_that_cannot_be_beaten_is_seldom_moved(learner: Learner, mild_phi: Weights) -> None:
    """Labels drawn from phi's own probabilities hold nothing to learn: on average most of phi stays."""
    shares = []
    for seed in range(12):
        inputs = 0.3 * separable(16, seed=seed).inputs
        chance = learner.task.predictions(learner.logits(mild_phi, inputs))[:, 1]
        labels = torch.bernoulli(chance, generator=torch.Generator().manual_seed(seed)).long()
        support = Cases(inputs, labels, torch.arange(16))
        adapted = adapt_safely(fine_tune, learner, mild_phi, support, RECIPE, draws(seed))
        shares.append(adapted.share)
        if adapted.share == 0:
            assert torch.equal(adapted.predict(inputs), learner.logits(mild_phi, inputs))
    assert shares.count(0) >= 4
    assert sum(shares) / len(shares) < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_an_untrained_phi_adapts_to_what_can_be_learned(
    learner: Learner, untrained: Weights, seed: int
) -> None:
    """A separable support moves the network, and other patients are told apart nearly always."""
    adapted = adapt_safely(fine_tune, learner, untrained, separable(12, seed=seed), RECIPE, draws(seed))
    others = separable(100, seed=seed + 100)
    assert adapted.share > 0
    assert ((adapted.predict(others.inputs)[:, 0] > 0).long() == others.labels).float().mean() > 0.9


def test_with_one_patient_per_class_the_recipe_alone_decides(learner: Learner, good_phi: Weights) -> None:
    """Nothing can be held out: the adapted predictions count whole, were they ever so wrong."""
    support = separable(2, seed=1)
    opposite = always(lambda inputs: -learner.logits(good_phi, inputs))
    adapted = adapt_safely(opposite, learner, good_phi, support, RECIPE, draws())
    assert adapted.share == 1
    assert torch.equal(adapted.predict(support.inputs), -learner.logits(good_phi, support.inputs))


def folds_of(learner: Learner, support: Cases) -> list[tuple[list[int], list[int]]]:
    """Return the (learned, checked) patients of every fold; inputs must begin with the patient's number."""
    seen: list[tuple[list[int], list[int]]] = []

    def adapt(learner: Learner, phi: Weights, support: Cases, recipe: InnerLoop, draws: Draws) -> Predictor:
        learned = support.patients.tolist()

        def predict(inputs: Tensor) -> Tensor:
            seen.append((learned, inputs[:, 0].long().tolist()))
            return torch.zeros(len(inputs), 1)

        return predict

    adapt_safely(adapt, learner, zeroed(learner), support, RECIPE, draws())
    return seen


def marked(labels: list[int], patients: list[int]) -> Cases:
    """Return cases whose inputs begin with the patient's number."""
    inputs = torch.tensor([[float(patient), 0.0] for patient in patients])
    return Cases(inputs, torch.tensor(labels), torch.tensor(patients))


def test_folds_keep_patients_apart(learner: Learner) -> None:
    """Nobody is learned from and checked on at once, and every case is checked once."""
    support = marked([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0])
    folds = folds_of(learner, support)
    assert len(folds) == 3
    assert not any(set(learned) & set(checked) for learned, checked in folds)
    assert sorted(patient for _, checked in folds for patient in checked) == sorted(support.patients.tolist())


@pytest.mark.parametrize("patients", [[0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]])
def test_a_fold_with_nobody_left_to_learn_from_is_no_fold(
    learner: Learner, untrained: Weights, patients: list[int]
) -> None:
    """Where two patients have images in both classes, adapting still ends in a model."""
    adapted = adapt_safely(fine_tune, learner, untrained, marked([0, 0, 1, 1], patients), RECIPE, draws())
    assert adapted.share in SHARES
