"""The shape of every task: what a network must put out, its loss, and how its predictions are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Metrics = dict[str, NDArray[np.float64]]
Answers = tuple[NDArray[np.float64], NDArray[np.float64]]
"""To yes-or-no questions, `[case, question]` each: probability of yes, and 1 or 0 for the truth, or NaN."""


@dataclass(frozen=True)
class TaskKind:
    """One kind of task, as pure functions."""

    outputs: Callable[[int], int]
    """How many outputs a network needs for so many targets (see `Task.targets`)."""
    head: Callable[[int, int], nn.Module]
    """From the numbers of features and of outputs to a head with an output per target."""
    losses: Callable[[Tensor, Tensor], Tensor]
    """From outputs `[case, output, *place]` and labels `[case, *place]` to each case's loss `[case]`."""
    predictions: Callable[[Tensor], Tensor]
    """From outputs to what the metrics judge."""
    metrics: Callable[[NDArray[Any], NDArray[Any], NDArray[np.float64]], Metrics]
    """From predictions, labels and case weights `[replicate, case]` to each metric `[replicate]`."""
    titles: Mapping[str, str]
    """The metrics' names, as a configuration and as a reader knows them; the first is the headline."""
    lower_is_better: frozenset[str]
    from_scores: Callable[[Tensor], Tensor] | None = None
    """From a score per class `[case, class]`, whose softmax is their probability, to outputs; None where a
    case is not of one class, so that cases cannot be compared by their classes."""
    questions: Callable[[NDArray[Any], NDArray[Any]], Answers] | None = None
    """From predictions and labels to answers, the mean of whose AUROCs is that of `metrics`; None where
    predictions are no probabilities of cases."""
    maps: bool = False
    """Whether every pixel is asked about, so that a network must make maps."""

    def loss(self, outputs: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the mean loss, or with `shares` `[case]` the sum in which each case weighs that much."""
        each = self.losses(outputs, labels)
        return each.mean() if shares is None else each @ shares.to(each)

    @property
    def by_class(self) -> bool:
        """Whether each case is of one class, so that K counts patients per class."""
        return self.from_scores is not None

    @property
    def headline(self) -> str:
        """The metric that a report leads with, unless the configuration says otherwise."""
        return next(iter(self.titles))

    def goodness(self, metric: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a metric's values such that more is better."""
        return -values if metric in self.lower_is_better else values
