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
from common.errors import PolicyError, TooSmallError
from common.inner_loop import least_patients
from common.sections import Training
from common.seeds import Draws


def check_lesson(policy: Policy, lesson: Lesson, training: Training, algorithm: Algorithm) -> None:
    """Raise PolicyError or TooSmallError where no round of this training would be taken part in."""
    known = drawn_from(policy, lesson, training, algorithm)
    bare = replace(lesson.cases, inputs=torch.empty(len(lesson.cases), 0))
    draws = Draws.of_seed(0, "describe")
    drawn = episodes(bare, lesson.strata, training, draws, halves=algorithm.queries, known=known)
    check_floors(policy, drawn, training, algorithm)


def drawn_from(policy: Policy, lesson: Lesson, training: Training, algorithm: Algorithm) -> tuple[int, ...]:
    """Return what is told of each class that episodes may draw from, 0 for the others.

    TooSmallError, PolicyError: too few are left, by what is told; no other count decides. Classes have at
    least what is told, in groups of their own (`Hospital.known`). Of each class a floor of patients is not
    drawn, or asked about: where all but one were, two draws would differ by two patients. Any `way` of the
    classes leave a query enough patients.
    """
    told, needed, floor = lesson.patients, training.way or len(lesson.strata), policy.min_step_patients
    if not training.shot:
        return told
    spare = 0 if algorithm.queries or floor == 1 else floor
    able = sorted(count for count in told if count >= training.shot)
    if len(able) < needed:
        raise TooSmallError(
            f"episodes of {training.shot} patients per class need more classes with so many than are told. "
            "Lower training.shot (0 is ordinary training) or training.way."
        )
    able = [count for count in able if count >= training.shot + spare]
    asked = training.query or training.shot
    left = sum(min(asked, count - training.shot) for count in able[:needed])
    if len(able) < needed or (algorithm.queries and left < floor):
        raise PolicyError("min-step-patients")
    return tuple(count if count >= training.shot + spare else 0 for count in told)


def check_floors(policy: Policy, tasks: Sequence[Episode], training: Training, algorithm: Algorithm) -> None:
    """Raise PolicyError, which names the key, where too few patients stand behind a step or the update."""
    for episode in tasks:
        batch_size = 0 if algorithm.adapter else training.batch_size
        support, *query = (_patients(side) for side in _sides(episode, algorithm))
        if min(least_patients(support, batch_size), *query, support) < policy.min_step_patients:
            raise PolicyError("min-step-patients")
    if _behind(tasks, training, algorithm) < policy.min_patients:
        raise PolicyError("min-patients")


def _behind(tasks: Sequence[Episode], training: Training, algorithm: Algorithm) -> int:
    """Return how many patients an update is of at the least.

    Of a support those of its steps: each step has others until everybody was drawn once.
    """
    certain, partly = [torch.empty(0, dtype=torch.int64)], 0
    for episode in tasks:
        support, *query = (side.patients for side in _sides(episode, algorithm))
        patients, certain = len(torch.unique(support)), [*certain, *query]
        drawn = training.inner_steps * least_patients(patients, training.batch_size)
        if algorithm.adapter or drawn >= patients:
            certain.append(support)
        else:  # at the worst, those whom the query has as well
            asked = torch.unique(torch.cat([*query, support[:0]]))
            both = len(torch.unique(support[torch.isin(support, asked)]))
            partly = max(partly, len(asked) + drawn - both)
    return max(partly, len(torch.unique(torch.cat(certain))))


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
