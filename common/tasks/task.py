"""The shape of every task: what a network must put out, its loss, and how its predictions are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Metrics = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class TaskKind:
    """One kind of task, as pure functions."""

    outputs: Callable[[int], int]
    """How many outputs a network needs for so many classes."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """From outputs `[case, output]` and labels `[case]` to a scalar."""
    from_scores: Callable[[Tensor], Tensor]
    """From a score per class `[case, class]`, whose softmax is their probability, to outputs."""
    probabilities: Callable[[Tensor], Tensor]
    """From outputs to `[case, class]`."""
    metrics: Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]], Metrics]
    """From probabilities, labels and case weights `[replicate, case]` to each metric `[replicate]`."""
    names: frozenset[str]
    """The metrics' names."""
    lower_is_better: frozenset[str]
