"""What a label says, as what a network learns: a class, a number, findings, or the way to a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from client.cells import NOT_MEASURED, alike, class_of, kind_of, number
from client.labels import Cells
from client.preflight import REMEDIES, Reason
from common.sections import Task
from common.tasks.multi_label import UNKNOWN

Target = int | float | tuple[int, ...] | str
UNCERTAIN = -1.0
"""How some label extractors write a finding that they cannot tell; taken as unknown."""


def target_of(cells: Cells, task: Task) -> Target | Reason:
    """Return what the cells in a task's label columns say, or why they say nothing that can be used."""
    if all(cell.lower() in NOT_MEASURED for cell in cells):
        return Reason.MISSING_LABEL
    if task.kind == "classification":
        place = class_of(cells[0], task.classes)
        return Reason.UNKNOWN_CLASS if place is None else place
    if task.kind == "regression":
        value = number(cells[0])
        return Reason.NOT_A_NUMBER if value is None else value
    if task.kind == "multi-label":
        return _findings(cells)
    return cells[0]


def remedy_of(reason: Reason, cells: Cells, task: Task) -> str:
    """Return what can be done about a row or file that is left out, whose label's cells are these."""
    if reason == Reason.NOT_A_NUMBER:
        kind = kind_of(cells[0])
        return f"Its label holds {kind.words}. {kind.remedy}, or leave it empty."
    if reason == Reason.UNKNOWN_CLASS:
        meant = [name for name in task.classes if alike(name) == alike(cells[0])]
        if meant:
            return f"Its label differs from {meant[0]} by case or blanks alone: write it so."
    return REMEDIES[reason]


def _findings(cells: Cells) -> tuple[int, ...] | Reason:
    """Return 1, 0 or UNKNOWN for each finding."""
    known: dict[float | None, int] = {0.0: 0, 1.0: 1, UNCERTAIN: UNKNOWN}
    found = tuple(UNKNOWN if cell.lower() in NOT_MEASURED else known.get(number(cell)) for cell in cells)
    if None in found:
        return Reason.NOT_YES_OR_NO
    return Reason.MISSING_LABEL if set(found) == {UNKNOWN} else found  # type: ignore[return-value]


def stacked(targets: Sequence[Target], task: Task) -> Tensor:
    """Return targets as labels: float32 numbers, or int64 classes or findings."""
    return torch.tensor(targets, dtype=torch.float32 if task.kind == "regression" else torch.int64)


def counted(labels: Tensor, task: Task) -> dict[str, int]:
    """Return how many cases are of each class or have each finding; nothing where labels are neither."""
    if task.kind == "classification":
        counts = torch.bincount(labels, minlength=len(task.classes))
    elif task.kind == "multi-label":
        counts = (labels == 1).sum(0)
    else:
        return {}
    return dict(zip(task.classes, counts.tolist(), strict=True))
