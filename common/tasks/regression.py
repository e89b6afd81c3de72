"""Regression: one number a case, such as an age; a network puts out (number - center) / spread.

`[task] center` and `spread` are the run's, the same at every hospital, so that outputs near 0 and of
length 1 are what is usual. Metrics are in the label's own unit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.sections import Task
from common.tasks.task import Metrics, TaskKind

TITLES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²"}
LOWER_IS_BETTER = frozenset({"mae", "rmse"})
FARTHEST = 1000.0
"""Spreads from the center beyond which a network has diverged; its metrics stay numbers."""


def kind(task: Task) -> TaskKind:
    """Return regression in a task's unit as functions."""
    return TaskKind(
        outputs=outputs,
        head=nn.Linear,
        losses=partial(losses, center=task.center, spread=task.spread),
        predictions=partial(predictions, center=task.center, spread=task.spread),
        metrics=metrics,
        titles=TITLES,
        lower_is_better=LOWER_IS_BETTER,
    )


def outputs(targets: int) -> int:
    """Return one output per number."""
    return targets


def losses(
    predicted: Float[Tensor, "case 1"], labels: Float[Tensor, "case"], *, center: float, spread: float
) -> Float[Tensor, "case"]:
    """Return each case's squared error in units of `spread`."""
    truth = (labels.to(predicted.dtype) - center) / spread
    return functional.mse_loss(predicted[:, 0], truth, reduction="none")


def predictions(predicted: Float[Tensor, "case 1"], *, center: float, spread: float) -> Float[Tensor, "case"]:
    """Return the predicted numbers in the label's unit, in float64, none beyond `FARTHEST`."""
    return predicted[:, 0].double().clamp(-FARTHEST, FARTHEST) * spread + center


def metrics(predicted: NDArray[Any], labels: NDArray[Any], weights: NDArray[np.float64]) -> Metrics:
    """Return each metric under each row of case weights.

    R² is 1 less the squared error over the labels' variance about their own mean in the replicate; NaN where
    they do not vary.

    Args:
        predicted: `[case]`, in the label's unit.
        labels: `[case]`.
        weights: `[replicate, case]`, how often each case counts.

    """
    truth = labels.astype(np.float64)
    total = weights.sum(1)
    error = predicted - truth
    squared = weights @ error**2 / total
    mean = weights @ truth / total
    variance = (weights * (truth - mean[:, None]) ** 2).sum(1) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(variance > 0, 1 - squared / variance, np.nan)
    return {"mae": weights @ np.abs(error) / total, "rmse": np.sqrt(squared), "r2": r2}
