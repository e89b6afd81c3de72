"""Which of the run's classes a hospital trains on and is judged on, and under which numbers."""

from __future__ import annotations

import pytest
import torch

from client.classes import examined, lesson
from client.dataset import Census, Hospital
from common.cases import Cases
from common.config import Config, load
from common.errors import DataError

CLASSES = ("normal", "mass", "nodule", "rare")


def config(*over: str) -> Config:
    """Return a configuration with four classes."""
    return load(None, [f"task.classes={list(CLASSES)}", *over])


def hospital(adaptation: list[int], test: list[int]) -> Hospital:
    """Return a hospital with these labels; each input is its own label."""

    def side(labels: list[int]) -> Cases:
        found = torch.tensor(labels, dtype=torch.int64)
        return Cases(found[:, None].float(), found, torch.arange(len(labels)))

    return Hospital("site-1", side(adaptation), side(test), Census(0, {}, 0, {}, ()), b"")


PLACE = hospital([0, 3, 1, 0, 3], [0, 1, 3, 3])
"""Has no nodule."""


def test_where_all_have_the_same_classes_nothing_is_touched() -> None:
    """The very same cases, under the very same numbers."""
    taught = lesson(PLACE, config(), "reptile")
    assert taught.cases is PLACE.adaptation
    assert taught.classes == CLASSES
    judged, classes = examined(PLACE, config())
    assert judged.test is PLACE.test
    assert classes == CLASSES


@pytest.mark.parametrize("algorithm", ["reptile", "protonet"])
def test_unseen_classes_are_never_trained_on(algorithm: str) -> None:
    """Not one case of them, whoever learns."""
    taught = lesson(PLACE, config('experiment.unseen-classes=["rare"]', "training.patients=all"), algorithm)
    assert "rare" not in taught.classes
    assert sorted(taught.cases.inputs[:, 0].tolist()) == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_a_shared_head_numbers_classes_alike_everywhere() -> None:
    """Without the unseen mass, nodule is 1 for all, though this hospital has none, and rare is 2."""
    taught = lesson(PLACE, config('experiment.unseen-classes=["mass"]'), "fedavg")
    assert taught.classes == ("normal", "nodule", "rare")
    assert taught.cases.labels.tolist() == [0, 2, 0, 2]


@pytest.mark.parametrize("algorithm", ["reptile", "siamese"])
def test_a_head_at_home_numbers_what_is_there(algorithm: str) -> None:
    """Normal, mass and rare are 0, 1 and 2 here."""
    taught = lesson(PLACE, config("training.head=home"), algorithm)
    assert taught.classes == ("normal", "mass", "rare")
    assert taught.cases.labels.tolist() == [0, 2, 1, 0, 2]


def test_one_class_teaches_nothing() -> None:
    """The hospital is told which class it has alone."""
    with pytest.raises(DataError, match="normal alone; protonet needs two"):
        lesson(hospital([0, 0, 3], [0]), config('experiment.unseen-classes=["rare"]'), "protonet")


def test_a_hospital_is_judged_on_unseen_and_known_classes_that_it_has() -> None:
    """Of normal, nodule and rare it has two, which keep their order."""
    over = ('experiment.unseen-classes=["rare", "nodule"]', 'experiment.known-classes=["normal"]')
    judged, classes = examined(PLACE, config(*over))
    assert classes == ("normal", "rare")
    assert judged.adaptation.labels.tolist() == [0, 1, 0, 1]
    assert judged.test.inputs[:, 0].tolist() == [0.0, 3.0, 3.0]


def test_with_own_classes_a_hospital_is_judged_on_all_that_it_has() -> None:
    """Whether in the half to adapt with or in the half to test on."""
    place = hospital([0, 1], [0, 3])
    _, classes = examined(place, config("task.own-classes=true", "training.head=home"))
    assert classes == ("normal", "mass", "rare")
