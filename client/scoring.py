"""Metrics of predictions, with a bootstrap over support draws and test patients.

The same draws of the hospital's resample the same support draws and the same patients for every algorithm, so
differences between algorithms are paired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.cases import Cases
from common.seeds import Draws
from common.tasks.task import Metrics, TaskKind


@dataclass(frozen=True)
class Scored:
    """One draw's predictions for the test cases at `rows`."""

    logits: Tensor
    labels: Tensor
    rows: NDArray[np.int64]


def score(
    task: TaskKind, predicted: Iterable[Scored], test: Cases, replicates: int, draws: Draws
) -> tuple[Metrics, Metrics]:
    """Return each metric by `[draw]`, and by `[replicate]` as a mean over resampled draws."""
    again = resampled(test.patients.numpy(), replicates, draws.child("patients"))
    weights = np.concatenate([np.ones((1, len(test))), again])
    per_draw = [_metrics(task, draw, weights) for draw in predicted]
    table = {name: np.stack([metrics[name] for metrics in per_draw]) for name in per_draw[0]}
    count = len(per_draw)
    chosen = draws.child("draws", count).below(count, replicates * count).reshape(replicates, count)
    column = np.arange(replicates)[:, None]
    return (
        {name: values[:, 0] for name, values in table.items()},
        {name: values[:, 1:][chosen, column].mean(1) for name, values in table.items()},
    )


def _metrics(task: TaskKind, draw: Scored, weights: NDArray[np.float64]) -> Metrics:
    predicted = task.predictions(draw.logits).numpy()
    mine = weights if len(draw.rows) == weights.shape[1] else weights[:, draw.rows]
    return task.metrics(predicted, draw.labels.numpy(), mine)


def resampled(patients: NDArray[np.int64], replicates: int, draws: Draws) -> NDArray[np.float64]:
    """Return how often each case counts, `[replicate, case]`: whole patients are resampled.

    `patients` says whose each case is.
    """
    names, member = np.unique(patients, return_inverse=True)
    many, counts = len(names), np.empty((replicates, len(names)))
    for replicate in counts:
        replicate[:] = np.bincount(draws.below(many, many), minlength=many)
    return counts[:, member]
