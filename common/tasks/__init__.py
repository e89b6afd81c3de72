"""What is to be predicted: loss, metrics, and what a label is; one file per kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from common.sections import Task
from common.tasks import classification, multi_label, regression, segmentation
from common.tasks.task import TaskKind


def _classification(_task: Task) -> TaskKind:
    return TaskKind(
        outputs=classification.outputs,
        head=nn.Linear,
        loss=classification.loss,
        predictions=classification.probabilities,
        metrics=classification.metrics,
        titles=classification.TITLES,
        lower_is_better=classification.LOWER_IS_BETTER,
        from_scores=classification.from_scores,
    )


def _multi_label(_task: Task) -> TaskKind:
    return TaskKind(
        outputs=multi_label.outputs,
        head=nn.Linear,
        loss=multi_label.loss,
        predictions=multi_label.probabilities,
        metrics=multi_label.metrics,
        titles=multi_label.TITLES,
        lower_is_better=multi_label.LOWER_IS_BETTER,
    )


def _regression(task: Task) -> TaskKind:
    return TaskKind(
        outputs=regression.outputs,
        head=nn.Linear,
        loss=partial(regression.loss, center=task.center, spread=task.spread),
        predictions=partial(regression.predictions, center=task.center, spread=task.spread),
        metrics=regression.metrics,
        titles=regression.TITLES,
        lower_is_better=regression.LOWER_IS_BETTER,
    )


def _segmentation(_task: Task) -> TaskKind:
    return TaskKind(
        outputs=segmentation.outputs,
        head=partial(nn.Conv2d, kernel_size=1),
        loss=segmentation.loss,
        predictions=segmentation.predictions,
        metrics=segmentation.metrics,
        titles=segmentation.TITLES,
        lower_is_better=segmentation.LOWER_IS_BETTER,
        maps=True,
    )


KINDS: Mapping[str, Callable[[Task], TaskKind]] = {
    "classification": _classification,
    "multi-label": _multi_label,
    "regression": _regression,
    "segmentation": _segmentation,
}
_ALL = [make(Task()) for make in KINDS.values()]
TITLES = {name: title for kind in _ALL for name, title in kind.titles.items()}
"""Every metric of every kind, as a reader knows it."""
LOWER_IS_BETTER = frozenset[str]().union(*(kind.lower_is_better for kind in _ALL))


def kind_of(task: Task) -> TaskKind:
    """Return the kind of a run's task."""
    return KINDS[task.kind](task)


__all__ = ["KINDS", "LOWER_IS_BETTER", "TITLES", "TaskKind", "kind_of"]
