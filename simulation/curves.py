"""ROC and reliability curves of a simulated run, from the predictions that its held-out hospitals kept.

No message carries predictions, so a deployed run has no curves.

A ROC curve is the mean, at each false positive rate, of the curves of every question (is it this class?),
draw and hospital. The area under a mean is the mean of the areas: that of a curve is the mean AUROC that a
report tells of the same algorithm and K, over the same hospitals.

A reliability curve pools the answers of those hospitals, orders them by the probability that was stated, and
sets the mean probability of each tenth against how often it was so (Niculescu-Mizil and Caruana 2005).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import predictions
from client.predictions import Predictions
from client.scoring import resampled
from common.config import Config
from common.seeds import Draws
from common.tasks import TaskKind
from server.experiment.results import interval
from server.report.board import Board, Row

BINS = 10
LEAST = 10
"""Test cases behind a bin on average; fewer bins where there would be fewer."""
LEVEL = 0.95
"""Of an interval."""
MOST_POINTS = 201
"""Points of a ROC curve; more are thinned out, evenly along it."""
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""False and true positive rates `[point]`, from (0, 0) to (1, 1), neither ever falling."""


def curves(config: Config, rows: Iterable[Row], folder: Path) -> list[dict[str, Any]]:
    """Return both curves of each algorithm and K, over the hospitals at which all have an AUROC.

    `folder` has what the hospitals kept. Nothing is said of a K of which it lacks a part, nor of a task that
    asks no yes-or-no questions.
    """
    ask, board = config.kind.questions, Board.of(rows, "auroc")
    if ask is None:
        return []
    found = []
    for shot in board.shots:
        sites = board.common(shot)
        for name in board.measured(shot) if sites else ():
            files = [predictions.file_of(folder, site, name, shot) for site in sites]
            if all(file.is_file() for file in files):
                answered = [Answered.of(predictions.load(file), config.kind) for file in files]
                found.append({"algorithm": name, "shot": shot, **_both(config, sites, answered)})
    return found


@dataclass(frozen=True)
class Answered:
    """One hospital's answers in every draw, one after the other; those whose truth is unknown are none."""

    stated: NDArray[np.float64]
    """`[answer]`: probability of yes."""
    truth: NDArray[np.float64]
    """`[answer]`: 1 for yes, 0 for no."""
    question: NDArray[np.int64]
    patient: NDArray[np.int64]
    draw: NDArray[np.int64]

    @classmethod
    def of(cls, kept: Predictions, kind: TaskKind) -> Answered:
        """Return what was kept as answers to the task's questions."""
        assert kind.questions is not None  # noqa: S101 - curves are of those that have some
        stated, truth = kind.questions(kept.predicted, kept.labels)
        row, question = np.nonzero(~np.isnan(truth))
        return cls(stated[row, question], truth[row, question], question, kept.patients[row], kept.draws[row])


def _both(config: Config, sites: Sequence[str], answered: Sequence[Answered]) -> dict[str, Any]:
    draws = [Draws.of_seed(config.seed, "curves", site) for site in sites]
    rates = thinned(mean_roc(answered))
    return {
        "hospitals": len(sites),
        "roc": dict(zip(("fpr", "tpr"), ([round(float(x), 6) for x in side] for side in rates), strict=True)),
        "reliability": reliability(answered, config.experiment.replicates, draws),
    }


def roc(stated: NDArray[np.float64], truth: NDArray[np.float64]) -> Curve:
    """Return the ROC curve of answers of both kinds; equal probabilities are one point, ties thus half."""
    order = np.argsort(-stated, kind="stable")
    last = np.append(np.flatnonzero(np.diff(stated[order])), len(stated) - 1)
    yes = np.concatenate([[0.0], truth[order].cumsum()[last]])
    no = np.concatenate([[0.0], (1 - truth[order]).cumsum()[last]])
    return no / no[-1], yes / yes[-1]


def mean_roc(answered: Sequence[Answered]) -> Curve:
    """Return the mean over hospitals of the mean over draws of the mean over questions, as AUROC is told.

    A question that a draw's cases all answer alike counts nowhere.
    """
    parts: list[tuple[float, Curve]] = []
    for site in answered:
        draws = np.unique(site.draw)
        for draw in draws:
            asked = [(site.draw == draw) & (site.question == one) for one in np.unique(site.question)]
            known = [mine for mine in asked if 0 < site.truth[mine].sum() < mine.sum()]
            share = 1 / (len(answered) * len(draws) * max(len(known), 1))
            parts += [(share, roc(site.stated[mine], site.truth[mine])) for mine in known]
    at = np.unique(np.concatenate([fpr for _, (fpr, _) in parts]))
    low, high = np.zeros(len(at)), np.zeros(len(at))
    for share, curve in parts:
        begins, ends = _limits(curve, at)
        low, high = low + share * begins, high + share * ends
    return np.repeat(at, 2), np.clip(np.stack([low, high], axis=1).ravel(), 0, 1)


def _limits(curve: Curve, at: NDArray[np.float64]) -> Curve:
    """Return where a curve arrives at each false positive rate, and where it leaves: it rises in between."""
    rates, first = np.unique(curve[0], return_index=True)
    arrives, leaves = curve[1][first], curve[1][np.append(first[1:], len(curve[0])) - 1]
    here = np.searchsorted(rates, at, side="right") - 1
    ahead = np.minimum(here + 1, len(rates) - 1)
    on = rates[here] == at
    share = np.where(on, 0.0, (at - rates[here]) / np.where(on, 1.0, rates[ahead] - rates[here]))
    between = leaves[here] + share * (arrives[ahead] - leaves[here])
    return np.where(on, arrives[here], between), np.where(on, leaves[here], between)


def thinned(curve: Curve) -> Curve:
    """Return a curve in `MOST_POINTS` points at most; its area changes by less than 0.0025."""
    fpr, tpr = curve
    if len(fpr) <= MOST_POINTS:
        return curve
    at = np.linspace(0, 2, MOST_POINTS)
    return np.interp(at, fpr + tpr, fpr), np.interp(at, fpr + tpr, tpr)


def reliability(
    answered: Sequence[Answered], replicates: int, draws: Sequence[Draws]
) -> list[dict[str, float | int]]:
    """Return bins of equally many answers, equal probabilities together, in order of what was stated.

    Each has the mean probability `stated`, the share `observed` of yes, the bounds of its 95 % interval, and
    its number of `answers` in all draws. Intervals are bootstrap intervals, patients and draws resampled as
    for every metric. Resampling cannot move a share of 0 or 1: there the bound inwards is that of as many
    independent answers as there are patients (Clopper and Pearson 1934).
    """
    stated = np.concatenate([one.stated for one in answered])
    cases = sum(len(one.stated) / len(np.unique(one.draw)) for one in answered)
    bins = int(np.clip(cases // LEAST, 1, BINS))
    edges = np.unique(np.quantile(stated, np.arange(1, bins) / bins))
    count = len(edges) + 1
    sums, again = np.zeros((4, count)), np.zeros((2, replicates, count))
    for one, chance in zip(answered, draws, strict=True):
        member = np.searchsorted(edges, one.stated, side="right")
        of_patients, _ = np.unique(np.stack([member, one.patient]), axis=1)
        sums += [
            *(np.bincount(member, values, count) for values in (np.ones(len(member)), one.truth, one.stated)),
            np.bincount(of_patients, minlength=count),
        ]
        again += _replicates(one, member, count, replicates, chance)
    with np.errstate(invalid="ignore"):
        shares = (again[1] / again[0]).T
    return [_bin(sums[:, place], shares[place]) for place in np.flatnonzero(sums[0])]


def _bin(sums: NDArray[np.float64], shares: NDArray[np.float64]) -> dict[str, float | int]:
    """Return a bin of such numbers of answers, of yes, of probabilities and of patients."""
    answers, yes, stated, patients = map(float, sums)
    low, high = interval(shares)
    inwards = (1 - LEVEL) / 2
    if yes == 0:
        high = 1 - inwards ** (1 / patients)
    if yes == answers:
        low = inwards ** (1 / patients)
    return {
        "stated": stated / answers,
        "observed": yes / answers,
        "ci_low": low,
        "ci_high": high,
        "answers": int(answers),
    }


def _replicates(
    one: Answered, member: NDArray[np.int64], bins: int, replicates: int, chance: Draws
) -> NDArray[np.float64]:
    """Return in each replicate how many answers each bin has, and how many are yes: `[2, replicate, bin]`."""
    patients, whose = np.unique(one.patient, return_inverse=True)
    draws, when = np.unique(one.draw, return_inverse=True)
    cells, shape = (whose, member, when), (len(patients), bins, len(draws))
    weights = resampled(patients, replicates, chance.child("patients"))
    chosen = chance.child("draws").below(len(draws), replicates * len(draws)).reshape(replicates, -1)
    times = np.stack([np.bincount(each, minlength=len(draws)) for each in chosen])
    found = []
    for values in (np.ones(len(member)), one.truth):
        table = np.zeros(shape)
        np.add.at(table, cells, values)
        found.append(np.einsum("rbd,rd->rb", np.tensordot(weights, table, axes=1), times))
    return np.stack(found)
