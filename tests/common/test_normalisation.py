"""Batch normalisation by fixed statistics, and which weights cross the wire."""

from __future__ import annotations

import pytest
import torch

from common import heads
from common.config import load
from common.errors import ConfigError
from common.initialise import learner_for, learner_of_algorithm, shared_weights

BATCH = ("model.norm=batch", "model.width=4", 'task.classes=["a", "b", "c"]')
SHAPE = (1, 16, 16)
CPU = torch.device("cpu")


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Return random images."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_statistics_are_those_of_the_given_images() -> None:
    """On these images themselves, one batch, fixed statistics normalise as the batch's own do."""
    learner = learner_for(load(None, BATCH), SHAPE, CPU)
    phi, reference = learner.weights(), images(40)
    fixed = learner.calibrated(phi, reference)
    torch.testing.assert_close(fixed.logits(phi, reference), learner.logits(phi, reference))


def test_with_fixed_statistics_a_prediction_depends_on_its_case_alone() -> None:
    """Alone or beside others the same; by the batch's own statistics not."""
    learner = learner_for(load(None, BATCH), SHAPE, CPU)
    phi, asked = learner.weights(), images(9, seed=1)
    fixed = learner.calibrated(phi, images(40))
    torch.testing.assert_close(fixed.logits(phi, asked)[:2], fixed.logits(phi, asked[:2]))
    assert not torch.allclose(learner.logits(phi, asked)[:2], learner.logits(phi, asked[:2]), atol=1e-3)


def test_calibrating_leaves_the_learner_as_it_was() -> None:
    """The network that trains goes on with each batch's own statistics."""
    learner = learner_for(load(None, BATCH), SHAPE, CPU)
    phi, asked = learner.weights(), images(9)
    before = learner.logits(phi, asked)
    learner.calibrated({name: value + 1 for name, value in phi.items()}, images(40, seed=2))
    assert torch.equal(before, learner.logits(phi, asked))


def test_group_normalisation_has_nothing_to_calibrate() -> None:
    """It predicts each case by itself already."""
    learner = learner_for(load(None, ["model.width=4"]), SHAPE, CPU)
    phi, asked = learner.weights(), images(5)
    assert torch.equal(learner.calibrated(phi, images(9)).logits(phi, asked), learner.logits(phi, asked))


def test_fedbn_shares_everything_but_normalisation() -> None:
    """Four blocks of width 4, a scale and a shift each, are all that FedAvg sends more."""
    config = load(None, [*BATCH, 'experiment.algorithms=["fedbn", "fedavg"]'])
    fedavg, fedbn = (shared_weights(config, name, SHAPE) for name in ("fedavg", "fedbn"))
    kept = fedavg.keys() - fedbn.keys()
    assert sum(fedavg[name].numel() for name in kept) == 4 * (4 + 4)
    assert list(fedbn) == [name for name in fedavg if name not in kept]


@pytest.mark.parametrize("head", ["shared", "home"])
def test_a_head_at_home_does_not_cross(head: str) -> None:
    """What crosses has the same names and sizes for any classes, and the backbone is the same network."""
    config = load(None, [*BATCH, f"training.head={head}"])
    crossing = shared_weights(config, "reptile", SHAPE)
    assert any(name.startswith("adapter.") for name in crossing) == (head == "shared")
    whole = learner_for(config, SHAPE, CPU).weights()
    assert all(torch.equal(value, whole[name]) for name, value in crossing.items())


def test_a_fresh_head_prefers_no_class() -> None:
    """Zero weights: every class has the same probability whatever the image."""
    config = load(None, [*BATCH, "training.head=home"])
    learner = learner_of_algorithm(config, "reptile", SHAPE, CPU, 5)
    chance = learner.task.predictions(learner.logits(learner.weights(), images(3)))
    torch.testing.assert_close(chance, torch.full((3, 5), 0.2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("over", "algorithm", "keeps", "unadapted"),
    [
        ((), "reptile", True, True),
        (("training.head=home",), "reptile", False, False),
        (("training.way=3", "training.shot=1"), "reptile", True, False),
        (("training.way=2", "training.shot=1"), "reptile", False, False),
        (('experiment.unseen-classes=["c"]',), "reptile", False, False),
        ((), "protonet", True, False),
        (("experiment.way=3",), "local-only", False, False),
    ],
)
def test_whose_head_answers(over: tuple[str, ...], algorithm: str, keeps: bool, unadapted: bool) -> None:
    """Phi's own where it was made for such a task; K = 0 only where that is by name."""
    config = load(None, [*BATCH, *over])
    assert heads.keeps_head(config, algorithm, 3) == keeps
    assert heads.predicts_unadapted(config, algorithm) == unadapted


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            ['experiment.algorithms=["fedbn"]'],
            'set model.norm = "batch", and model.name to',
        ),
        (["task.own-classes=true"], 'set training.head = "home"'),
        (['experiment.unseen-classes=["nodule"]'], "nodule is none of task.classes"),
        (['experiment.unseen-classes=["normal"]'], "fewer than two classes"),
        (['experiment.known-classes=["normal"]'], "name those as well"),
        (["experiment.way=1"], "leaves nothing to tell apart"),
        (["algorithms.maml.normalisation=local"], "normalisation shared or recompute"),
    ],
)
def test_what_does_not_go_together_is_refused(over: list[str], words: str) -> None:
    """Each message says what to set instead."""
    with pytest.raises(ConfigError, match=words):
        load(None, over)
