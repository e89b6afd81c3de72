"""From an experiment's answers to `results.json`: rows, paired differences, and what a report needs.

`rows` has one object per algorithm, held-out site, shot and metric:

- `mean`: over the support draws (K = 0 has a single one);
- `ci_low`, `ci_high`: 95 % bootstrap interval of that mean, draws and test patients resampled;
- `draws`: how many support draws; `worst`: the worst single draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import heads
from common.algorithms import ALGORITHMS
from common.config import Config
from common.tasks.means import mean_of_known
from common.wire import Judgement
from server.app import MetaTrained
from server.experiment.conduct import Outcome
from server.experiment.plan import Cell, Recipe, Training
from server.report.words import NOBODY

FORMAT = 1
INTERVAL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""

Answers = Mapping[Cell, Judgement]


def results(config: Config, outcome: Outcome, *, command: str, workers: int) -> dict[str, Any]:
    """Return everything that a run found out, as plain data."""
    answers = outcome.answers
    reference = config.experiment.algorithms[0]
    return {
        "format": FORMAT,
        "version": version("zamenis"),
        "command": command,
        "seed": config.seed,
        "metric": config.metric,
        "task": {
            "kind": config.task.kind,
            "label": config.task.label,
            "classes": list(config.task.classes),
        },
        "model": config.model.name,
        "parameters": outcome.parameters,
        "engine": config.engine.name,
        "workers": workers,
        "rows": rows(answers, config.kind.lower_is_better),
        "differences": differences(answers, reference),
        "mean_differences": mean_differences(answers, reference),
        "gradient_steps": _gradient_steps(config, outcome.trained),
        "hurt": _hurt(config, answers),
        "recipes": _recipes(outcome.recipes),
        "rounds": _rounds(outcome.trained),
        "left_out": _left_out(answers),
        "hospitals": [
            {"site": site, **description.census.as_dict()} for site, description in outcome.hospitals.items()
        ],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "timing": dict(outcome.timing),
    }


def rows(answers: Answers, lower_is_better: frozenset[str]) -> list[dict[str, Any]]:
    """Return one row per algorithm, site, shot and metric that could be judged."""
    found = []
    for cell, answer in answers.items():
        for metric, values in answer.draws.items():
            if not _known(values, answer.replicates[metric]):
                continue
            low, high = interval(answer.replicates[metric])
            worst = values.max() if metric in lower_is_better else values.min()
            found.append(
                {
                    **asdict(cell),
                    "metric": metric,
                    "mean": float(values.mean()),
                    "ci_low": low,
                    "ci_high": high,
                    "draws": len(values),
                    "worst": float(worst),
                }
            )
    return found


def differences(answers: Answers, reference: str) -> list[dict[str, Any]]:
    """Return reference minus every other algorithm, paired on draws and test patients."""
    found = []
    for cell, answer in answers.items():
        base = answers[replace(cell, algorithm=reference)]
        if cell.algorithm == reference or base.left_out:
            continue
        for metric in answer.draws:
            gain, spread = _gain(base, answer, metric)
            if not _known(gain, spread):
                continue
            low, high = interval(spread)
            found.append(
                {
                    **asdict(cell),
                    "reference": reference,
                    "metric": metric,
                    "mean": gain,
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return found


def mean_differences(answers: Answers, reference: str) -> list[dict[str, Any]]:
    """Return reference minus every other algorithm on average over the hospitals where both have a figure.

    Hospitals are not resampled: the interval is for these ones.
    """
    pairs: dict[tuple[str, int, str], list[tuple[float, NDArray[np.float64]]]] = {}
    for cell, answer in answers.items():
        base = answers[replace(cell, algorithm=reference)]
        if cell.algorithm == reference:
            continue
        for metric in answer.draws.keys() & base.draws.keys():
            gain, spread = _gain(base, answer, metric)
            if _known(gain, spread):
                pairs.setdefault((cell.algorithm, cell.shot, metric), []).append((gain, spread))
    found = []
    for (algorithm, shot, metric), gains in pairs.items():
        low, high = interval(mean_of_known(np.stack([spread for _, spread in gains], axis=1)))
        found.append(
            {
                "algorithm": algorithm,
                "shot": shot,
                "reference": reference,
                "metric": metric,
                "hospitals": len(gains),
                "mean": float(np.mean([gain for gain, _ in gains])),
                "ci_low": low,
                "ci_high": high,
            }
        )
    return sorted(found, key=lambda row: (row["algorithm"], row["shot"], row["metric"]))


def _gain(base: Judgement, answer: Judgement, metric: str) -> tuple[float, NDArray[np.float64]]:
    """Return by how much a metric of `base` is above `answer`'s, and the same by replicate."""
    gain = base.draws[metric].mean() - answer.draws[metric].mean()
    return float(gain), base.replicates[metric] - answer.replicates[metric]


def _known(values: float | NDArray[np.float64], replicates: NDArray[np.float64]) -> bool:
    """Return whether a figure, and an interval around it, are defined."""
    return not (np.isnan(values).any() or np.isnan(replicates).all())


def _gradient_steps(config: Config, trained: Mapping[Training, MetaTrained]) -> dict[str, int]:
    """Return the gradient steps that all sites took together in each algorithm's first training."""
    first: dict[str, int] = {}
    for training, end in trained.items():
        name = training.algorithm
        steps = ALGORITHMS[name].steps(config.training_of(name))
        first.setdefault(name, steps * sum(entry["sites"] for entry in end.history))
    return first


def interval(replicates: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval, leaving out replicates in which a class was missing."""
    low, high = np.nanpercentile(replicates, INTERVAL)
    return float(low), float(high)


def _hurt(config: Config, answers: Answers) -> list[dict[str, Any]]:
    """Return how often adapting scored below phi's own answer, where phi has one."""
    return [
        {**asdict(cell), "share": answer.hurt, "fell_back": answer.fell_back}
        for cell, answer in answers.items()
        if cell.shot and not answer.left_out and heads.predicts_unadapted(config, cell.algorithm)
    ]


def _left_out(answers: Answers) -> list[dict[str, Any]]:
    reasons = ((cell.site, cell.shot, answer.left_out) for cell, answer in answers.items() if answer.left_out)
    return [{"site": site, "shot": shot, "reason": why} for site, shot, why in dict.fromkeys(reasons)]


def _recipes(recipes: Mapping[Cell, Recipe]) -> list[dict[str, Any]]:
    none = {"scope": "none", "inner_lr": 0.0, "inner_steps": 0}
    return [
        {**asdict(cell), **none}
        if recipe is None
        else {
            **asdict(cell),
            "scope": "proximal" if recipe.proximal else recipe.scope,
            "inner_lr": recipe.lr,
            "inner_steps": recipe.steps,
        }
        for cell, recipe in recipes.items()
    ]


def _rounds(trained: Mapping[Training, MetaTrained]) -> list[dict[str, Any]]:
    """Return the history of each training that a held-out hospital was judged with, or of the only one."""
    shown = {training for training in trained if len(training.excluded) == 1} or set(trained)
    return [
        {"algorithm": training.algorithm, "site": " and ".join(training.excluded) or NOBODY, **entry}
        for training, end in trained.items()
        if training in shown
        for entry in end.history
    ]
