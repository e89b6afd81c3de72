"""The shape of every algorithm: what it does at a site, how it adapts, and what makes it itself.

The coordinator's half is shared by all (`server/outer_loop`); an algorithm differs there only through
`identity`, its settings over [training].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common import weights
from common.cases import Cases, Episode
from common.inner_loop import InnerLoop, inner_loop
from common.learner import Learner
from common.optimizer import Memory
from common.sections import Training
from common.seeds import Draws
from common.weights import Weights

Predictor = Callable[[Tensor], Tensor]
"""From inputs `[case, *feature]` to logits `[case, output]`."""


@dataclass(frozen=True)
class Update:
    """What a site's half returns: `delta` to be averaged, and sums to be added up over sites."""

    delta: Weights
    loss_sum: float
    """The loss of each episode, added up: the inner loop's mean or, where there is a query, the query's."""
    episodes: int


MOST_LOSS = 1e4
"""Mean loss of an episode, in nats, above which a coordinator is told this much."""
LocalUpdate = Callable[[Learner, Weights, Sequence[Episode], Training, Draws, Memory], Update]
"""The site's half; it writes into the memory what the site's inner optimiser is to remember."""
Adapt = Callable[[Learner, Weights, Cases, InnerLoop, Draws], Predictor]


def fine_tune(learner: Learner, phi: Weights, support: Cases, recipe: InnerLoop, draws: Draws) -> Predictor:
    """Adapt as gradient-based algorithms do: an inner loop from phi on the support."""
    phi_tilde, _ = inner_loop(learner, phi, support, recipe, draws)
    return lambda inputs: learner.logits(phi_tilde, inputs)


@dataclass(frozen=True)
class Algorithm:
    """One way to learn to learn."""

    name: str
    paper: str
    local_update: LocalUpdate | None
    """The site's half; None: nothing is trained before a hospital adapts."""
    adapt: Adapt = fine_tune
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What makes the algorithm itself, over [training]; keys as in a configuration file."""
    objection: Callable[[Training], str] = lambda _: ""
    """Says what these settings ask for that the algorithm does not have; nothing where all is well."""
    adapter: Callable[[int], nn.Module] | None = None
    """From a number of features to an adapter that compares cases; None: a head with an output per class."""
    steps: Callable[[Training], int] = lambda training: training.episodes * training.inner_steps
    """Gradient steps that a site takes in a round: gradients of the loss of a batch that it computes."""
    queries: bool = False
    """Learns from an episode's query as well: with `shot = 0` a site's patients are dealt into two halves."""
    pooled: bool = False
    """Trains where all sites' data lie together: no federation, an upper bound for one."""


CLIP_MARGIN = 2.0
"""Times that a round's clip is as long as the quantile of the deltas' lengths that it follows: what is of a
usual length stays whole, and so does what is sent while the clip still swings."""


def longest_coordinate(training: Training, clip: float = 0.0) -> float:
    """Return the magnitude that no coordinate of a site's delta may exceed; larger ones are clipped.

    No more than the round's `clip`, where it has one.

    Step t of a fresh Adam (beta1 = 0) moves a coordinate by at most inner-lr times the root of t; many steps
    never all do, so that beyond four times inner-lr each the bound does not grow further.
    """
    count = steps_at_a_site(training)
    afresh = math.inf if training.remembers else sum(map(math.sqrt, range(1, count + 1)))
    reach = training.clip_norm or training.inner_lr * min(afresh, 4.0 * count)
    return min(reach, clip or reach)


def steps_at_a_site(training: Training) -> int:
    """Return how many steps lie at most from phi to what a site sends: an inner loop's, or one an episode."""
    return max(training.inner_steps, training.episodes)


def longest_delta(training: Training, parameters: int, clip: float = 0.0) -> float:
    """Return the L2 norm that no site's delta may exceed: `clip-norm` in [training], or the round's own clip.

    A round's clip is at most that; 0: as far as [training] goes.
    """
    reach = training.clip_norm or training.inner_lr * steps_at_a_site(training) * math.sqrt(parameters)
    return min(reach, clip or reach)


def within_clip(delta: Tensor, training: Training, clip: float = 0.0) -> bool:
    """Return the bit that a site tells of its delta `[parameter]`: whether CLIP_MARGIN of it fit the clip."""
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    return CLIP_MARGIN * norm <= longest_delta(training, len(delta), clip)


def clipped(delta: Tensor, training: Training, clip: float = 0.0) -> Tensor:
    """Return a site's delta `[parameter]` within the bounds of its norm and of every coordinate."""
    norm = longest_delta(training, len(delta), clip)
    return weights.clip(delta, norm, longest_coordinate(training, clip))


def finite(delta: Tensor, loss_sum: float, episodes: int) -> tuple[Tensor, float]:
    """Return a delta and its losses as they are; where a number is not finite, no delta and the most loss.

    Weights can be made to overflow for what a single patient has. So a hospital whose training did answers as
    all others do: a refusal would tell a coordinator of this hospital alone what only sums may tell.
    """
    if math.isfinite(loss_sum) and bool(delta.isfinite().all()):
        return delta, loss_sum
    return torch.zeros_like(delta), MOST_LOSS * episodes


def inner_settings(training: Training) -> InnerLoop:
    """Return the inner loop that [training] describes."""
    return InnerLoop(
        steps=training.inner_steps,
        lr=training.inner_lr,
        optimizer=training.inner_optimizer,
        batch_size=training.batch_size,
        proximal=training.proximal,
        scope=training.inner_scope,
    )
