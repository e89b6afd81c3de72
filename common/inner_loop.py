"""The inner loop: some steps of SGD or Adam from phi on one task's cases, giving phi_tilde.

The same loop trains a site in a round and adapts phi to a new hospital's K cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.cases import Cases
from common.learner import Learner
from common.optimizer import Memory, optimizer_of
from common.seeds import Draws
from common.weights import Weights


@dataclass(frozen=True)
class InnerLoop:
    """The settings of one inner loop; also the recipe by which a hospital adapts phi."""

    steps: int
    lr: float
    optimizer: str = "sgd"
    batch_size: int = 0
    """Patients per step at the least, one image each; 0: all of them, with all their images."""
    proximal: float = 0.0
    """Weight of half the squared distance to phi (FedProx's mu, arXiv 1812.06127)."""
    scope: str = "all"
    """What moves: `all`, or the `adapter` alone."""


class Batch(NamedTuple):
    """What one gradient step learns from."""

    rows: Int[Tensor, "chosen"]
    """Which of the cases."""
    shares: Float[Tensor, "chosen"] | None
    """How much each weighs, so that every patient weighs the same; None: one case each."""


def inner_loop(
    learner: Learner,
    phi: Weights,
    cases: Cases,
    settings: InnerLoop,
    draws: Draws,
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
    for rows, shares in minibatches(cases, settings.batch_size, settings.steps, draws):
        batch, truth = inputs[rows].to(learner.device), labels[rows].to(learner.device)
        optimizer.zero_grad(set_to_none=True)
        loss = learner.task.loss(moving(batch), truth, shares)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, anchor in zip(moving.parameters() if anchors else (), anchors, strict=True):
            assert parameter.grad is not None  # noqa: S101 - every parameter takes part in the loss
            parameter.grad.add_(parameter.detach() - anchor, alpha=settings.proximal)
        optimizer.step()
        total += loss.detach()
    return learner.weights(), float(total) / settings.steps


def minibatches(cases: Cases, batch_size: int, steps: int, draws: Draws) -> Iterator[Batch]:
    """Yield `steps` batches that walk through shuffled epochs of the patients, none below `least_patients`.

    An epoch is cut into as many batches as have their size, as evenly as can be.
    A batch has one image of each of its patients, drawn anew every epoch; with a batch size of 0 it has every
    case of everybody, in order.
    """
    if not len(cases):
        raise ValueError("no cases to draw minibatches from; give at least one.")
    patients, place = torch.unique(cases.patients, return_inverse=True)
    each = max(1, len(patients) // batch_size) if batch_size else 1
    if not batch_size or (each == 1 and len(patients) == len(cases)):
        shares = cases.shares
        for _ in range(steps):
            yield Batch(torch.arange(len(cases)), shares)
        return
    done = 0
    while done < steps:
        images = _one_each(place, len(patients), draws)
        order = images[draws.permutation(len(patients))]
        for rows in torch.tensor_split(order, each)[: steps - done]:
            yield Batch(rows, None)
            done += 1


def least_patients(patients: int, batch_size: int) -> int:
    """Return how many patients every batch has at the least: `batch_size`, or all where there are fewer."""
    return min(batch_size or patients, patients)


def _one_each(place: Int[Tensor, "case"], patients: int, draws: Draws) -> Int[Tensor, "patient"]:
    """Return a random case of each patient, in the order of their numbers; `place` is each case's patient."""
    if len(place) == patients:
        return torch.argsort(place)
    shuffled = draws.permutation(len(place))
    return shuffled[np.unique(place[shuffled].numpy(), return_index=True)[1]]
