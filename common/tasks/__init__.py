"""What is to be predicted: loss, metrics, and what a label is; one file per kind of task."""

from __future__ import annotations

from collections.abc import Mapping

from common.tasks import classification
from common.tasks.task import TaskKind

TASKS: Mapping[str, TaskKind] = {
    "classification": TaskKind(
        outputs=classification.outputs,
        loss=classification.loss,
        from_scores=classification.from_scores,
        probabilities=classification.probabilities,
        metrics=classification.metrics,
        names=classification.NAMES,
        lower_is_better=classification.LOWER_IS_BETTER,
    ),
}

__all__ = ["TASKS", "TaskKind"]
