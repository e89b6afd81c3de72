"""Multi-label classification: any number of findings in one case; one that is unknown (-1) counts nowhere.

Every figure is the mean over findings of what two-class classification reports for one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.sections import Task
from common.tasks import classification
from common.tasks.means import mean_of_known
from common.tasks.task import Answers, Metrics, TaskKind

UNKNOWN = -1
TITLES = classification.TITLES


def kind(_task: Task) -> TaskKind:
    """Return multi-label classification as functions."""
    return TaskKind(
        outputs=outputs,
        head=nn.Linear,
        losses=losses,
        predictions=probabilities,
        metrics=metrics,
        titles=TITLES,
        lower_is_better=classification.LOWER_IS_BETTER,
        questions=questions,
    )


def outputs(targets: int) -> int:
    """Return one logit per finding."""
    return targets


def losses(
    logits: Float[Tensor, "case finding"], labels: Int[Tensor, "case finding"]
) -> Float[Tensor, "case"]:
    """Return each case's mean binary cross-entropy in nats over its known labels; 0 where none is."""
    known = (labels != UNKNOWN).to(logits.dtype)
    each = functional.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).to(logits.dtype), weight=known, reduction="none"
    )
    return each.sum(1) / known.sum(1).clamp(min=1)


def probabilities(logits: Float[Tensor, "case finding"]) -> Float[Tensor, "case finding"]:
    """Return each finding's probability, in float64."""
    return logits.double().sigmoid()


def metrics(
    probability: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> Metrics:
    """Return each metric under each row of case weights, NaN where no finding is known in any case.

    Args:
        probability: `[case, finding]`.
        labels: `[case, finding]`, 0, 1 or -1 for unknown.
        weights: `[replicate, case]`, how often each case counts.

    """
    found = [_of_one(probability[:, k], labels[:, k], weights) for k in range(labels.shape[1])]
    return {name: mean_of_known(np.stack([one[name] for one in found], axis=1)) for name in TITLES}


def questions(probability: NDArray[np.float64], labels: NDArray[np.int64]) -> Answers:
    """Return whether each case has each finding; NaN where that is unknown."""
    return probability, np.where(labels == UNKNOWN, np.nan, labels)


def _of_one(
    probability: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> Metrics:
    """Return one finding's metrics; NaN in replicates without a case in which it is known."""
    known = labels != UNKNOWN
    if not known.any():
        return {name: np.full(len(weights), np.nan) for name in TITLES}
    both = np.stack([1 - probability[known], probability[known]], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return classification.metrics(both, labels[known], weights[:, known])
