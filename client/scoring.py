"""Metrics of predictions, with a bootstrap over support draws and test patients.

The same seed and site resample the same draws and the same patients for every algorithm, so differences
between algorithms are paired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common import seeds
from common.cases import Cases
from common.tasks.task import Metrics, TaskKind


@dataclass(frozen=True)
class Scored:
    """One draw's predictions for the test cases at `rows`."""

    logits: Tensor
    labels: Tensor
    rows: NDArray[np.int64]


def score(
    task: TaskKind, draws: Iterable[Scored], test: Cases, replicates: int, *, seed: int, site: str
) -> tuple[Metrics, Metrics]:
    """Return each metric by `[draw]`, and by `[replicate]` as a mean over resampled draws."""
    weights = np.concatenate(
        [np.ones((1, len(test))), _bootstrap_cases(test, replicates, seed=seed, site=site)]
    )
    per_draw = [_metrics(task, draw, weights) for draw in draws]
    table = {name: np.stack([metrics[name] for metrics in per_draw]) for name in per_draw[0]}
    chance = np.random.default_rng(seeds.derive(seed, "resample draws", site, len(per_draw)))
    chosen = chance.integers(len(per_draw), size=(replicates, len(per_draw)))
    column = np.arange(replicates)[:, None]
    return (
        {name: values[:, 0] for name, values in table.items()},
        {name: values[:, 1:][chosen, column].mean(1) for name, values in table.items()},
    )


def _metrics(task: TaskKind, draw: Scored, weights: NDArray[np.float64]) -> Metrics:
    predicted = task.predictions(draw.logits).numpy()
    mine = weights if len(draw.rows) == weights.shape[1] else weights[:, draw.rows]
    return task.metrics(predicted, draw.labels.numpy(), mine)


def _bootstrap_cases(test: Cases, replicates: int, *, seed: int, site: str) -> NDArray[np.float64]:
    """Return how often each test case counts in each replicate: whole patients are resampled."""
    patients, member = np.unique(test.patients.numpy(), return_inverse=True)
    chance = np.random.default_rng(seeds.derive(seed, "resample patients", site))
    even = np.full(len(patients), 1 / len(patients))
    counts = chance.multinomial(len(patients), even, size=replicates)
    return counts[:, member].astype(np.float64)
