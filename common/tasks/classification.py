"""Classification, binary and multi-class: loss, probabilities and metrics.

Two classes share one logit (the second class is the positive one), more have one logit each.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.sections import Task
from common.tasks.means import mean_of_known
from common.tasks.task import Answers, TaskKind

CALIBRATION_BINS = 10
TITLES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "balanced-accuracy": "balanced accuracy",
    "ece": "ECE",
    "brier": "Brier score",
    "log-loss": "log loss",
}
"""What `metrics` measures."""
LOWER_IS_BETTER = frozenset({"ece", "brier", "log-loss"})


def kind(_task: Task) -> TaskKind:
    """Return classification as functions."""
    return TaskKind(
        outputs=outputs,
        head=nn.Linear,
        losses=losses,
        predictions=probabilities,
        metrics=metrics,
        titles=TITLES,
        lower_is_better=LOWER_IS_BETTER,
        from_scores=from_scores,
        questions=questions,
    )


def outputs(classes: int) -> int:
    """Return how many logits tell `classes` classes apart."""
    return 1 if classes == 2 else classes


def losses(logits: Float[Tensor, "case output"], labels: Int[Tensor, "case"]) -> Float[Tensor, "case"]:
    """Return each case's cross-entropy in nats."""
    if logits.shape[1] == 1:
        truth = labels.to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")
    return functional.cross_entropy(logits, labels, reduction="none")


def from_scores(scores: Float[Tensor, "case klass"]) -> Float[Tensor, "case output"]:
    """Return the logits whose probabilities are the softmax of `scores`."""
    return scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores


def probabilities(logits: Float[Tensor, "case output"]) -> Float[Tensor, "case klass"]:
    """Return each class's probability, rows summing to 1, in float64."""
    exact = logits.double()
    if logits.shape[1] == 1:
        positive = exact[:, 0].sigmoid()
        return torch.stack([1 - positive, positive], dim=1)
    return exact.softmax(1)


def metrics(
    probability: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return each metric under each row of case weights.

    Args:
        probability: `[case, class]`, rows summing to 1.
        labels: `[case]`, class indices.
        weights: `[replicate, case]`, how often each case counts: rows of ones for the plain metric,
            bootstrap counts for its replicates.

    Returns:
        For each metric an array `[replicate]`. AUROC is the mean over classes against the rest (for
        two classes that is the usual one), balanced accuracy the mean recall. Both leave out a class
        without cases (or without others) in the replicate; NaN only where no class is left.

    """
    total = weights.sum(1)
    truth = np.eye(probability.shape[1])[labels]
    hit = (probability.argmax(1) == labels).astype(np.float64)
    own = np.clip(probability[np.arange(len(labels)), labels], 1e-12, None)
    ranked = zip(*(side.T for side in questions(probability, labels)), strict=True)
    aurocs = np.stack([auroc(score, positive, weights) for score, positive in ranked])
    support = weights @ truth
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = (weights * hit) @ truth / support
    return {
        "auroc": mean_of_known(aurocs.T),
        "accuracy": weights @ hit / total,
        "balanced-accuracy": mean_of_known(recall),
        "ece": calibration_error(probability.max(1), hit, weights),
        "brier": weights @ ((probability - truth) ** 2).sum(1) / total,
        "log-loss": weights @ -np.log(own) / total,
    }


def questions(probability: NDArray[np.float64], labels: NDArray[np.int64]) -> Answers:
    """Return whether each case is of a class: of the second of two, of every one of more."""
    classes = probability.shape[1]
    asked = slice(1, 2) if classes == 2 else slice(None)
    return probability[:, asked], np.eye(classes)[labels][:, asked]


def auroc(
    score: NDArray[np.float64], positive: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weighted Mann-Whitney statistic: P(a positive scores above a negative), ties half."""
    order = np.argsort(score, kind="stable")
    ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    heavy, light = (
        np.add.reduceat((weights * side)[:, order], ties, axis=1) for side in (positive, 1 - positive)
    )
    below = light.cumsum(1) - light / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        known: NDArray[np.float64] = (heavy * below).sum(1) / (heavy.sum(1) * light.sum(1))
    return known


def calibration_error(
    confidence: NDArray[np.float64], hit: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the expected calibration error over ten equal-width bins of confidence (arXiv 1706.04599)."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    member = np.eye(CALIBRATION_BINS)[bins]
    gap: NDArray[np.float64] = np.abs((weights * (confidence - hit)) @ member).sum(1) / weights.sum(1)
    return gap
