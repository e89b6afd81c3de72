"""The inner loop: some steps of SGD or Adam from phi on one task's cases, giving phi_tilde.

The same loop trains a site in a round and adapts phi to a new hospital's K cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from common.cases import Cases
from common.learner import Learner
from common.optimizer import Memory, optimizer_of
from common.weights import Weights


@dataclass(frozen=True)
class InnerLoop:
    """The settings of one inner loop; also the recipe by which a hospital adapts phi."""

    steps: int
    lr: float
    optimizer: str = "sgd"
    batch_size: int = 0
    """Cases per step; 0: all of them."""
    proximal: float = 0.0
    """Weight of half the squared distance to phi (FedProx's mu, arXiv 1812.06127)."""
    scope: str = "all"
    """What moves: `all`, or the `adapter` alone."""


def inner_loop(
    learner: Learner,
    phi: Weights,
    cases: Cases,
    settings: InnerLoop,
    generator: torch.Generator,
    memory: Memory | None = None,
) -> tuple[Weights, float]:
    """Return phi_tilde and the mean training loss over the steps (nats); `memory` is the optimiser's."""
    learner.load(phi)
    moving = learner.part(settings.scope)
    inputs = learner.features(cases.inputs) if settings.scope == "adapter" else cases.inputs
    labels = cases.labels
    parameters, remembered = dict(moving.named_parameters()), {} if memory is None else memory
    optimizer = optimizer_of(parameters, settings.optimizer, settings.lr, remembered)
    anchors = [parameter.detach().clone() for parameter in moving.parameters()] if settings.proximal else []
    total = torch.zeros((), device=learner.device)
    for chosen in minibatches(len(cases), settings.batch_size, settings.steps, generator):
        batch, truth = inputs[chosen].to(learner.device), labels[chosen].to(learner.device)
        optimizer.zero_grad(set_to_none=True)
        loss = learner.task.loss(moving(batch), truth)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, anchor in zip(moving.parameters() if anchors else (), anchors, strict=True):
            assert parameter.grad is not None  # noqa: S101 - every parameter takes part in the loss
            parameter.grad.add_(parameter.detach() - anchor, alpha=settings.proximal)
        optimizer.step()
        total += loss.detach()
    return learner.weights(), float(total) / settings.steps


def minibatches(
    count: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Int[Tensor, "chosen"]]:
    """Yield `steps` index vectors that walk through shuffled epochs of `count` cases.

    The last batch of an epoch may be smaller. A batch that would hold every case is every case, in order.
    """
    if count == 0:
        raise ValueError("no cases to draw minibatches from; give at least one.")
    if not 0 < batch_size < count:
        for _ in range(steps):
            yield torch.arange(count)
        return
    done = 0
    while done < steps:
        for chosen in torch.split(torch.randperm(count, generator=generator), batch_size)[: steps - done]:
            yield chosen
            done += 1
