"""From an experiment's answers to `results.json`: rows, paired differences, and what a report needs.

`rows` has one object per algorithm, held-out site, shot and metric:

- `mean`: over the support draws (K = 0 has a single one);
- `ci_low`, `ci_high`: 95 % bootstrap interval of that mean, draws and test patients resampled;
- `draws`: how many support draws; `worst`: the worst single draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.tasks import TASKS
from common.wire import Judgement

FORMAT = 1
INTERVAL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""

Answers = Mapping[tuple[str, str, int], Judgement]
"""By algorithm, held-out site and shot."""


def results(config: Config, outcome: Mapping[str, Any], *, command: str, workers: int) -> dict[str, Any]:
    """Return everything that a run found out, as plain data."""
    answers: Answers = outcome["answers"]
    reference = config.experiment.algorithms[0]
    return {
        "format": FORMAT,
        "version": version("zamenis"),
        "command": command,
        "seed": config.seed,
        "metric": config.experiment.metric,
        "task": {"label": config.task.label, "classes": list(config.task.classes)},
        "model": config.model.name,
        "parameters": outcome["parameters"],
        "engine": config.engine.name,
        "workers": workers,
        "rows": rows(answers, TASKS[config.task.kind].lower_is_better),
        "differences": differences(answers, reference),
        "hurt": _hurt(answers),
        "recipes": _recipes(outcome["recipes"]),
        "rounds": _rounds(outcome["trained"]),
        "left_out": _left_out(answers),
        "hospitals": [
            {"site": site, **description.census} for site, description in outcome["descriptions"].items()
        ],
        "timing": outcome["timing"],
    }


def rows(answers: Answers, lower_is_better: frozenset[str]) -> list[dict[str, Any]]:
    """Return one row per algorithm, site, shot and metric that could be judged."""
    found = []
    for (algorithm, site, shot), answer in answers.items():
        for metric, values in answer.draws.items():
            if np.isnan(values).any():
                continue
            low, high = _interval(answer.replicates[metric])
            worst = values.max() if metric in lower_is_better else values.min()
            found.append(
                {
                    "algorithm": algorithm,
                    "site": site,
                    "shot": shot,
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
    for (algorithm, site, shot), answer in answers.items():
        base = answers.get((reference, site, shot))
        if algorithm == reference or base is None:
            continue
        for metric, values in answer.draws.items():
            gain = base.draws[metric].mean() - values.mean()
            if np.isnan(gain):
                continue
            low, high = _interval(base.replicates[metric] - answer.replicates[metric])
            found.append(
                {
                    "algorithm": algorithm,
                    "reference": reference,
                    "site": site,
                    "shot": shot,
                    "metric": metric,
                    "mean": float(gain),
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return found


def _interval(replicates: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval, leaving out replicates in which a class was missing."""
    low, high = np.nanpercentile(replicates, INTERVAL)
    return float(low), float(high)


def _hurt(answers: Answers) -> list[dict[str, Any]]:
    return [
        {"algorithm": algorithm, "site": site, "shot": shot, "share": answer.hurt, "fell_back": answer.fell_back}
        for (algorithm, site, shot), answer in answers.items()
        if shot and not answer.left_out
    ]


def _left_out(answers: Answers) -> list[dict[str, Any]]:
    reasons = {(site, shot): answer.left_out for (_, site, shot), answer in answers.items() if answer.left_out}
    return [{"site": site, "shot": shot, "reason": reason} for (site, shot), reason in reasons.items()]


def _recipes(recipes: Mapping[tuple[str, str, int], Any]) -> list[dict[str, Any]]:
    found = []
    for (algorithm, site, shot), recipe in recipes.items():
        chosen = {"algorithm": algorithm, "site": site, "shot": shot}
        if recipe is None:
            found.append({**chosen, "scope": "none", "inner_lr": 0.0, "inner_steps": 0})
        else:
            found.append(
                {**chosen, "scope": recipe.scope, "inner_lr": recipe.lr, "inner_steps": recipe.steps}
            )
    return found


def _rounds(trained: Mapping[tuple[str, tuple[str, ...]], Any]) -> list[dict[str, Any]]:
    """Return the history of each training that a held-out hospital was judged with."""
    return [
        {"algorithm": algorithm, "site": excluded[0], **entry}
        for (algorithm, excluded), outcome in trained.items()
        if len(excluded) == 1
        for entry in outcome.history
    ]
