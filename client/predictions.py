"""What a simulated hospital keeps of its predictions for its test cases, so that its run can draw curves.

The simulator names the folder (`predictions` in a node's configuration); a deployed hospital has none and
keeps nothing. No message carries any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.scoring import Scored
from common.cases import Cases
from common.files import PRIVATE, atomic
from common.tasks.task import TaskKind


@dataclass(frozen=True)
class Predictions:
    """Every draw's predictions at one hospital with one K, draw after draw."""

    predicted: NDArray[Any]
    """`[row, *what a task predicts]`, as its metrics judge it."""
    labels: NDArray[Any]
    """`[row, ...]`, of the same cases."""
    patients: NDArray[np.int64]
    """`[row]`: whose each case is, by a number of the hospital's own."""
    draws: NDArray[np.int64]
    """`[row]`: in which draw of the support it was predicted, from 0."""


def file_of(folder: Path, site: str, algorithm: str, shot: int) -> Path:
    """Return where one algorithm's predictions at a hospital with K = `shot` are."""
    return folder / site / algorithm / f"{shot}.npz"


def keep(path: Path, task: TaskKind, scored: Sequence[Scored], test: Cases) -> None:
    """Write the predictions of all draws for `test` to `path`, for its owner alone."""
    rows = [one.rows for one in scored]
    with atomic(path, mode=PRIVATE) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            predicted=np.concatenate([task.predictions(one.logits).numpy() for one in scored]),
            labels=np.concatenate([one.labels.numpy() for one in scored]),
            patients=test.patients.numpy()[np.concatenate(rows)],
            draws=np.repeat(np.arange(len(rows)), [len(each) for each in rows]),
        )


def load(path: Path) -> Predictions:
    """Return what `keep` wrote. Raises FileNotFoundError where it wrote nothing."""
    with np.load(path, allow_pickle=False) as kept:
        return Predictions(**kept)
