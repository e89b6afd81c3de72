"""What is to be predicted: loss, metrics, and what a label is; one file per kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common.sections import Task
from common.tasks import classification, multi_label, regression, segmentation
from common.tasks.task import TaskKind

KINDS: Mapping[str, Callable[[Task], TaskKind]] = {
    "classification": classification.kind,
    "multi-label": multi_label.kind,
    "regression": regression.kind,
    "segmentation": segmentation.kind,
}
_ALL = [make(Task()) for make in KINDS.values()]
TITLES = {name: title for kind in _ALL for name, title in kind.titles.items()}
"""Every metric of every kind, as a reader knows it."""
LOWER_IS_BETTER = frozenset[str]().union(*(kind.lower_is_better for kind in _ALL))


def kind_of(task: Task) -> TaskKind:
    """Return the kind of a run's task."""
    return KINDS[task.kind](task)


__all__ = ["KINDS", "LOWER_IS_BETTER", "TITLES", "TaskKind", "kind_of"]
