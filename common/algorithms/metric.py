"""What metric-based algorithms share: training by episodes, and answers by comparing with a support.

At a site:          one step of the inner optimiser per episode, on the episode's query loss
The site sends:     delta = phi_tilde - phi, as in FedAvg; the network has no output per class, so sites
                    with different classes share all of it
A hospital adapts:  by embedding its support once; nothing is trained, and without a case of every class
                    (K = 0) there is no answer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common import weights
from common.algorithms.algorithm import Predictor, Update
from common.algorithms.fedavg import ADOPT_THE_MEAN
from common.cases import Cases, Episode
from common.errors import DataError
from common.inner_loop import InnerLoop
from common.learner import Learner, on_cpu
from common.optimizer import Memory, optimizer_of
from common.sections import Training
from common.seeds import Draws
from common.weights import Weights

Compare = Callable[..., Tensor]
"""The network's adapter, as a function of features."""


@dataclass(frozen=True)
class Embedded:
    """Cases as a network's backbone sees them."""

    features: Float[Tensor, "case feature"]
    labels: Int[Tensor, "case"]
    """From 0, without gaps in a support."""
    shares: Float[Tensor, "case"] | None = None
    """How much each weighs, so that every patient weighs the same; None: one case each."""

    @property
    def by_class(self) -> Float[Tensor, "case klass"]:
        """A column per class, with how much each of its cases weighs."""
        members = one_hot(self.labels).to(self.features.dtype)
        return members if self.shares is None else members * self.shares.to(members)[:, None]


Score = Callable[[Compare, Embedded, Float[Tensor, "case feature"]], Float[Tensor, "case klass"]]
"""From a support and query features to a score per class: more is likelier."""
Loss = Callable[[Learner, Compare, Embedded, Embedded], Float[Tensor, ""]]
"""From support and query to what an episode minimises."""

IDENTITY: dict[str, Any] = {"proximal": 0.0, "outer": ADOPT_THE_MEAN}


@dataclass(frozen=True)
class Episodic:
    """The site's half: ordinary training on episodes."""

    loss: Loss

    def __call__(
        self,
        learner: Learner,
        phi: Weights,
        episodes: Sequence[Episode],
        training: Training,
        draws: Draws,
        memory: Memory,
    ) -> Update:
        """Return phi_tilde - phi after one step per episode, and the query losses."""
        here = learner.leaves(phi)
        optimizer = optimizer_of(here, training.inner_optimizer, training.inner_lr, memory)
        total = 0.0
        for episode in episodes:
            optimizer.zero_grad()
            support, query = _alike(episode)

            def compare(*features: Tensor) -> Tensor:
                return learner.adapter(here, *features)

            known, asked = (
                Embedded(learner.embed(here, side.inputs), side.labels.to(learner.device), side.shares)
                for side in (support, query)
            )
            loss = self.loss(learner, compare, known, asked)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach())
        return Update(weights.subtract(on_cpu(here), phi), total, len(episodes))


@dataclass(frozen=True)
class BySupport:
    """The hospital's half: its support's features are remembered, and every case is compared with them."""

    score: Score

    def __call__(
        self, learner: Learner, phi: Weights, support: Cases, recipe: InnerLoop, draws: Draws
    ) -> Predictor:
        """Return the predictor; the recipe has nothing to say. DataError where a class has no case."""
        count = int(support.labels.max()) + 1
        if len(torch.unique(support.labels)) < count:
            raise DataError("a class has no case to compare with; give at least one of every class.")
        learner.load(phi)
        features, labels = learner.features(support.inputs), support.labels.to(learner.device)
        known = Embedded(features, labels, support.shares)

        def predict(inputs: Tensor) -> Tensor:
            learner.load(phi)
            with torch.no_grad():
                scores = self.score(learner.network.adapter, known, learner.features(inputs))
            return _outputs(learner, scores).cpu()

        return predict


def classify(score: Score) -> Loss:
    """Return the loss of the class probabilities that the scores stand for."""

    def loss(learner: Learner, compare: Compare, known: Embedded, asked: Embedded) -> Tensor:
        outputs = _outputs(learner, score(compare, known, asked.features))
        return learner.task.loss(outputs, asked.labels, asked.shares)

    return loss


def steps(training: Training) -> int:
    """Return one step per episode."""
    return training.episodes


def one_hot(labels: Int[Tensor, "shot"]) -> Float[Tensor, "shot klass"]:
    """Return a column per class with ones where a label is that class."""
    return torch.nn.functional.one_hot(labels).float()


def _outputs(learner: Learner, scores: Tensor) -> Tensor:
    assert learner.task.from_scores is not None  # noqa: S101 - the configuration allows no other task here
    return learner.task.from_scores(scores)


def _alike(episode: Episode) -> tuple[Cases, Cases]:
    """Return support and query over the support's classes, numbered without gaps."""
    present, places = torch.unique(episode.support.labels, return_inverse=True)
    if len(present) < 2:
        raise DataError("an episode has a single class; comparing cases needs two classes to train on.")
    query = episode.query.at(torch.nonzero(torch.isin(episode.query.labels, present))[:, 0])
    support = Cases(episode.support.inputs, places, episode.support.patients)
    return support, Cases(query.inputs, torch.searchsorted(present, query.labels), query.patients)
