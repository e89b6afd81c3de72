"""A hospital's own task: which of the run's classes it trains on and is judged on, numbered from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from client.dataset import Hospital
from client.episodes import relabelled
from common import heads
from common.algorithms import ALGORITHMS
from common.cases import Cases
from common.config import Config
from common.errors import DataError

EVERYONE = ("any",)
"""The one stratum of a task whose cases are of no class of their own."""


@dataclass(frozen=True)
class Lesson:
    """What a site trains on; in classification, labels are places in `classes`."""

    cases: Cases
    classes: tuple[str, ...]
    """What a network's outputs stand for."""
    strata: tuple[str, ...]
    """Over which an episode is balanced: the classes, or `EVERYONE`."""


def lesson(hospital: Hospital, config: Config, algorithm: str) -> Lesson:
    """Return the cases of the classes that are meta-trained on.

    A shared head needs every hospital to number them alike; otherwise a hospital numbers those it has.
    Raises DataError where it has fewer than two.
    """
    training = config.training_of(algorithm)
    cases = hospital.everyone if training.patients == "all" else hospital.adaptation
    classes = heads.seen(config)
    alike = ALGORITHMS[algorithm].adapter is None and training.head == "shared"
    if not alike and config.kind.by_class:
        classes = _present(classes, config, cases)
        if len(classes) < 2:
            had = f"{classes[0]} alone" if classes else "none"
            raise DataError(
                f"of the classes to train on it has {had}; {algorithm} needs two. Leave the hospital out."
            )
    return Lesson(_numbered(cases, config, classes), classes, strata(classes, config))


def strata(classes: tuple[str, ...], config: Config) -> tuple[str, ...]:
    """Return over what K and episodes are balanced, where a network's outputs stand for `classes`."""
    return classes if config.kind.by_class else EVERYONE


def examined(hospital: Hospital, config: Config) -> tuple[Hospital, tuple[str, ...]]:
    """Return the hospital with the cases that it is judged on, and their classes."""
    classes = heads.judged(config)
    if config.task.own_classes or config.experiment.unseen_classes:
        classes = _present(classes, config, hospital.adaptation, hospital.test)
    adaptation, test = (_numbered(side, config, classes) for side in (hospital.adaptation, hospital.test))
    return replace(hospital, adaptation=adaptation, test=test), classes


def _present(classes: Sequence[str], config: Config, *sides: Cases) -> tuple[str, ...]:
    labels = {int(label) for side in sides for label in torch.unique(side.labels)}
    return tuple(name for name in classes if config.task.classes.index(name) in labels)


def _numbered(cases: Cases, config: Config, classes: tuple[str, ...]) -> Cases:
    """Return the cases of `classes`, labelled by their place there; nothing is copied where that is all."""
    if classes == config.task.targets:
        return cases
    return relabelled(cases, [config.task.classes.index(name) for name in classes])
