"""A hospital's own task: which of the run's classes it trains on and is judged on, numbered from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.dataset import Hospital
from common import heads
from common.algorithms import ALGORITHMS
from common.cases import Cases
from common.config import Config
from common.errors import TooSmallError

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
    patients: tuple[int, ...]
    """Of each stratum, as far as the hospital tells (`Hospital.known`): what a refusal may depend on."""


def lesson(hospital: Hospital, config: Config, algorithm: str) -> Lesson:
    """Return the cases of the classes that are meta-trained on.

    A shared head needs every hospital to number them alike; otherwise a hospital numbers those it has.
    Raises TooSmallError where it has fewer than two.
    """
    training = config.training_of(algorithm)
    everyone = training.patients == "all"
    classes = heads.seen(config)
    alike = ALGORITHMS[algorithm].adapter is None and training.head == "shared"
    if not alike and config.kind.by_class:
        classes = _present(classes, config, hospital, sides=2 if everyone else 1)
        if len(classes) < 2:
            had = f"{classes[0]} alone" if classes else "none"
            raise TooSmallError(
                f"of the classes to train on it has {had}; {algorithm} needs two. Leave the hospital out."
            )
    taught = _numbered(hospital, config, classes)
    known = [taught.known[0]] if not everyone else list(taught.known)
    named = strata(classes, config)
    patients = tuple(sum(side[place] for side in known if place < len(side)) for place in range(len(named)))
    return Lesson(taught.everyone if everyone else taught.adaptation, classes, named, patients)


def strata(classes: tuple[str, ...], config: Config) -> tuple[str, ...]:
    """Return over what K and episodes are balanced, where a network's outputs stand for `classes`."""
    return classes if config.kind.by_class else EVERYONE


def examined(hospital: Hospital, config: Config) -> tuple[Hospital, tuple[str, ...]]:
    """Return the hospital with the cases that it is judged on, and their classes."""
    classes = heads.judged(config)
    if config.task.own_classes or config.experiment.unseen_classes:
        classes = _present(classes, config, hospital, sides=2)
    return _numbered(hospital, config, classes), classes


def _present(classes: Sequence[str], config: Config, hospital: Hospital, *, sides: int) -> tuple[str, ...]:
    """Return the classes that a hospital has on its first `sides` sides, as far as it tells: never by few."""
    known = [set(np.flatnonzero(side).tolist()) for side in hospital.known[:sides]]
    return tuple(name for name in classes if config.task.classes.index(name) in set().union(*known))


def _numbered(hospital: Hospital, config: Config, classes: tuple[str, ...]) -> Hospital:
    """Return the hospital with cases of `classes`, labelled by their place there."""
    if classes == config.task.targets:
        return hospital
    return hospital.of_classes([config.task.classes.index(name) for name in classes])
