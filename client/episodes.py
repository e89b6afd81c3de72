"""Episodes from a hospital's cases: the site as one task, or way/shot tasks within it.

K counts patients: a support set never holds two images of one patient in one class, and a patient is
never in support and query at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from common.cases import Cases, Episode
from common.errors import TooSmallError
from common.sections import Training
from common.seeds import Draws


def episodes(
    cases: Cases,
    classes: tuple[str, ...],
    training: Training,
    draws: Draws,
    *,
    halves: bool = False,
    known: Sequence[int] | None = None,
) -> list[Episode]:
    """Return the episodes that a site trains on in one round.

    With `shot = 0` an episode is all of the site's cases, as support and query alike, or for an
    algorithm that needs them apart its patients dealt at random into two `halves`. Otherwise its
    support has `shot` patients per class and its query `query` (0: as many) others where they exist;
    with `way`, of `way` classes drawn at random and re-labelled 0 to way - 1. Raises TooSmallError where too
    few classes have the patients for that, by `known`: how many each has, as far as is told; None: as here.
    """
    if not training.shot:
        if halves:
            return [_halves(cases, draws) for _ in range(training.episodes)]
        return [Episode(support=cases, query=cases)] * training.episodes
    return [_episode(cases, classes, training, draws, known) for _ in range(training.episodes)]


def few_cases(cases: Cases, *, classes: int, shot: int, draws: Draws) -> Int[Tensor, "chosen"]:
    """Return the indices of `shot` patients per class, one image each, class after class.

    Every class must have that many patients (see `Cases.per_class`).
    """
    strata, patients = cases.strata, cases.patients
    return torch.cat([_of_class(strata, patients, label, shot, draws) for label in range(classes)])


def relabelled(cases: Cases, chosen: Sequence[int]) -> Cases:
    """Return the cases of the chosen classes, labelled by their place in `chosen`."""
    places = torch.full((max([*cases.labels.tolist(), *chosen], default=0) + 1,), -1)
    places[list(chosen)] = torch.arange(len(chosen))
    kept = torch.nonzero(places[cases.labels] >= 0)[:, 0]
    return Cases(cases.inputs[kept], places[cases.labels[kept]], cases.patients[kept])


def _able(
    cases: Cases, classes: tuple[str, ...], training: Training, known: Sequence[int] | None
) -> list[int]:
    """Return the classes with enough patients; TooSmallError where they are too few for an episode."""
    needed, counts = training.way or len(classes), cases.per_class(len(classes)) if known is None else known
    able = [k for k, patients in enumerate(counts) if patients >= training.shot]
    if len(able) < needed:
        raise TooSmallError(
            f"episodes of {training.shot} patients per class need {needed} classes with so many, and "
            "here are fewer. Lower training.shot (0 is ordinary training) or training.way."
        )
    return able


def _episode(
    cases: Cases, classes: tuple[str, ...], training: Training, draws: Draws, known: Sequence[int] | None
) -> Episode:
    able = _able(cases, classes, training, known)
    count = len(classes)
    if training.way:
        order = draws.permutation(len(able))[: training.way]
        cases = relabelled(cases, [able[int(k)] for k in order])
        count = training.way
    support = few_cases(cases, classes=count, shot=training.shot, draws=draws)
    asked = training.query or training.shot
    others = torch.nonzero(~torch.isin(cases.patients, cases.patients[support]))[:, 0]
    strata, patients = cases.strata[others], cases.patients[others]
    query = torch.cat([_of_class(strata, patients, label, asked, draws) for label in range(count)])
    return Episode(cases.at(support), cases.at(others[query]))


def _halves(cases: Cases, draws: Draws) -> Episode:
    """Return the cases of every other patient as support, of those between as query, class by class.

    A patient belongs to the class of the first case. Raises TooSmallError where no patient is left to ask.
    """
    patients, place = torch.unique(cases.patients, return_inverse=True)
    first = torch.zeros(len(patients), dtype=torch.int64)
    first[place.flip(0)] = torch.arange(len(cases)).flip(0)
    shuffled = draws.permutation(len(patients))
    support = torch.zeros(len(patients), dtype=torch.bool)
    strata = cases.strata
    for label in torch.unique(strata):
        support[shuffled[strata[first[shuffled]] == label][::2]] = True
    learned = support[place]
    if learned.all():
        raise TooSmallError(
            "support and query need two patients of one class at least; a site that has fewer cannot "
            "train with this algorithm."
        )
    return Episode(cases.at(torch.nonzero(learned)[:, 0]), cases.at(torch.nonzero(~learned)[:, 0]))


def _of_class(
    strata: Int[Tensor, "case"],
    patients: Int[Tensor, "case"],
    label: int,
    shot: int,
    draws: Draws,
) -> Int[Tensor, "chosen"]:
    """Return up to `shot` patients of a class, one random image each."""
    members = torch.nonzero(strata == label)[:, 0]
    shuffled = members[draws.permutation(len(members))]
    seen: set[int] = set()
    chosen = []
    for index, patient in zip(shuffled.tolist(), patients[shuffled].tolist(), strict=True):
        if patient not in seen and len(seen) < shot:
            seen.add(patient)
            chosen.append(index)
    return torch.tensor(chosen, dtype=torch.int64)
