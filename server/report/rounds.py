"""What a report says of the rounds of training: idle ones, who was missing and why, whether it was over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, variance
from typing import Any

from server.report.words import NOBODY, listing, spans

Row = Mapping[str, Any]
WINDOW = 5
"""Rounds that are compared with as many before: fewer than twice that tell nothing of where a loss goes."""
CLEARLY = 3.0
"""Standard errors by which the loss has to have fallen."""


@dataclass(frozen=True)
class Absence:
    """Rounds in which the same hospitals were missing for the same reasons."""

    training: str
    rounds: str
    took_part: int
    missing: Mapping[str, str]


def idle(rounds: Collection[Row]) -> list[str]:
    """Return how many rounds left phi as it was, for want of hospitals that could be used."""
    idle = sum("delta-norm" not in one for one in rounds)
    if not idle:
        return []
    if idle == len(rounds):
        return [
            "Nothing was learned: no round had enough hospitals; phi is as it began, and run.log says why."
        ]
    return [f"{idle} of {len(rounds)} rounds had too few hospitals and left phi as it was; run.log says why."]


def barred(rounds: Collection[Row]) -> list[str]:
    """Return who sat out because it stopped or spoilt sums, in how many rounds, and the latest reason."""
    turns = [item for one in rounds for item in one.get("barred", {}).items()]
    reasons, counts = dict(turns), Counter(site for site, _ in turns)
    return [
        f"{site} was kept out of {counts[site]} round{'s' * (counts[site] > 1)}: it {why}."
        for site, why in reasons.items()
    ]


def unfinished(rounds: Collection[Row]) -> list[str]:
    """Return whose loss was still falling in the last rounds, in a sentence, or nothing.

    The mean of the last `WINDOW` losses is compared with that of as many before, in every training.
    """
    falling: dict[str, list[float]] = {}
    for name, losses in _losses(rounds):
        if (share := _fall(losses)) is not None:
            falling.setdefault(name, []).append(share)
    if not falling:
        return []
    most = max(share for shares in falling.values() for share in shares)
    return [
        f"The loss of {listing(falling)} was still falling when the rounds were over, by "
        f"{'up to ' if len(falling) > 1 else ''}{most:.0%} within the last {2 * WINDOW}: more may help."
    ]


def _losses(rounds: Iterable[Row]) -> Iterator[tuple[str, list[float]]]:
    """Yield every training's algorithm and losses, in the order of its rounds."""
    trainings: dict[tuple[str, str], list[float]] = {}
    for one in rounds:
        if one.get("loss") is not None:
            trainings.setdefault((one["algorithm"], one["site"]), []).append(one["loss"])
    for (name, _), losses in trainings.items():
        yield name, losses


def _fall(losses: list[float]) -> float | None:
    """Return by which share of itself a loss fell at the end; None where it may have stood still."""
    before, last = losses[-2 * WINDOW : -WINDOW], losses[-WINDOW:]
    if len(before) < WINDOW or not mean(before):
        return None
    fall = mean(before) - mean(last)
    error = ((variance(before) + variance(last)) / WINDOW) ** 0.5
    share = fall / abs(mean(before))
    return share if fall > CLEARLY * error and share >= 0.01 else None


def absences(rounds: Iterable[Row]) -> list[Absence]:
    """Return who was missing in which rounds, and why; consecutive rounds alike are one."""
    found = []
    for (algorithm, site), each in groupby(rounds, key=lambda one: (one["algorithm"], one["site"])):
        training = algorithm if site == NOBODY else f"{algorithm} without {site}"
        alike = groupby(each, key=lambda one: (one.get("sites", 0), dict(one.get("missing", {}))))
        for (took_part, missing), same in alike:
            if missing:
                found.append(Absence(training, spans([one["round"] for one in same]), took_part, missing))
    return found
