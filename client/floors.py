"""Least patients behind what leaves: distinct ones behind an update and a step, in support and query.

What is checked are the episodes as they are trained on. Refusals name the key of policy.toml and no count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from client.classes import Lesson
from client.episodes import episodes
from client.policy import Policy
from common.algorithms import Algorithm
from common.cases import Cases, Episode
from common.errors import DataError, PolicyError
from common.inner_loop import least_patients
from common.sections import Training
from common.seeds import Draws


def check_lesson(policy: Policy, lesson: Lesson, training: Training, algorithm: Algorithm) -> None:
    """Raise PolicyError or DataError where no round of this training would be taken part in."""
    check_known(policy, lesson, training, algorithm)
    bare = replace(lesson.cases, inputs=torch.empty(len(lesson.cases), 0))
    draws = Draws.of_seed(0, "describe")
    drawn = episodes(bare, lesson.strata, training, draws, halves=algorithm.queries, known=lesson.patients)
    check_floors(policy, drawn, training, algorithm)


def check_known(policy: Policy, lesson: Lesson, training: Training, algorithm: Algorithm) -> None:
    """Raise DataError or PolicyError where episodes cannot be had, by what is told of the classes.

    No other count decides: classes have at least what is told, in groups of their own (`Hospital.known`).
    Any `way` of them have to leave a query enough patients.
    """
    able, needed = [], training.way or len(lesson.strata)
    if training.shot:
        able = sorted(count for count in lesson.patients if count >= training.shot)[:needed]
        if len(able) < needed:
            raise DataError(
                f"episodes of {training.shot} patients per class need more classes with so many than are "
                "told. Lower training.shot (0 is ordinary training) or training.way."
            )
    asked = training.query or training.shot
    left = sum(min(asked, count - training.shot) for count in able)
    if able and algorithm.queries and left < policy.min_step_patients:
        raise PolicyError("min-step-patients")


def check_floors(policy: Policy, tasks: Sequence[Episode], training: Training, algorithm: Algorithm) -> None:
    """Raise PolicyError, which names the key, where too few patients stand behind a step or the update."""
    for episode in tasks:
        batch_size = 0 if algorithm.adapter else training.batch_size
        support, *query = (_patients(side) for side in _sides(episode, algorithm))
        if min(least_patients(support, batch_size), *query, support) < policy.min_step_patients:
            raise PolicyError("min-step-patients")
    behind = [side.patients for episode in tasks for side in _sides(episode, algorithm)]
    if len(torch.unique(torch.cat(behind))) < policy.min_patients:
        raise PolicyError("min-patients")


def _sides(episode: Episode, algorithm: Algorithm) -> Iterator[Cases]:
    """Yield what of an episode is learned from: the support, and where the algorithm asks, the query.

    What is compared with the support is of the support's classes; other cases teach nothing.
    """
    yield episode.support
    if algorithm.queries:
        query = episode.query
        comparable = torch.isin(query.strata, episode.support.strata)
        yield query if comparable.all() else query.at(torch.nonzero(comparable)[:, 0])


def _patients(cases: Cases) -> int:
    return len(torch.unique(cases.patients))
