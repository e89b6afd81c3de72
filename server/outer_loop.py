"""The outer loop: mean delta in, phi out. Pure; the same for every algorithm.

`phi <- outer_optimizer(phi, mean_delta)`: SGD with a linearly annealed meta_lr (arXiv 1803.02999),
momentum, or Adam on the pseudo-gradient (FedAvgM and FedAdam, arXiv 2003.00295, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from common.sections import Outer

Vector = Float[Tensor, "parameter"]


@dataclass(frozen=True)
class OuterState:
    """Everything the coordinator carries from round to round."""

    phi: Vector
    """float32 `[parameter]`."""
    server_round: int = 0
    """Rounds already finished."""
    moments: Mapping[str, Vector] = field(default_factory=dict)
    """The optimiser's own vectors, float64."""
    clip: float = 0.0
    """L2 norm to which the next round's deltas are clipped (`server.clip`); 0: as far as [training] goes."""


def init(phi: Vector) -> OuterState:
    """Return the state before the first round."""
    return OuterState(phi=phi)


def apply(
    state: OuterState, mean_delta: Vector | None, outer: Outer, rounds: int
) -> tuple[OuterState, dict[str, float]]:
    """Return the state after one more round, and what is worth telling of it.

    `mean_delta` is float64, or None where too few sites answered: then phi stays as it was. Arithmetic
    is in float64 and rounded once, so that the result does not depend on anything but its inputs.
    """
    finished = replace(state, server_round=state.server_round + 1)
    meta_lr = annealed(outer, state.server_round, rounds)
    if mean_delta is None:
        return finished, {"meta-lr": meta_lr}
    step, moments = _direction(outer, state.moments, mean_delta)
    phi = torch.add(state.phi.double(), step, alpha=meta_lr).float()
    told = {"meta-lr": meta_lr, "delta-norm": float(torch.linalg.vector_norm(mean_delta))}
    return replace(finished, phi=phi, moments=moments), told


def annealed(outer: Outer, server_round: int, rounds: int) -> float:
    """Return meta_lr after `server_round` finished rounds of `rounds`: linear, as in Reptile's code."""
    return outer.meta_lr + (outer.meta_lr_final - outer.meta_lr) * (server_round / rounds)


def _direction(
    outer: Outer, moments: Mapping[str, Vector], delta: Vector
) -> tuple[Vector, Mapping[str, Vector]]:
    """Return what meta_lr scales, and the optimiser's next moments."""
    if outer.optimizer == "sgd":
        return delta, {}
    first = moments.get("first", torch.zeros_like(delta))
    if outer.optimizer == "momentum":
        first = outer.momentum * first + delta
        return first, {"first": first}
    second = moments.get("second", torch.zeros_like(delta))
    first = outer.momentum * first + (1 - outer.momentum) * delta
    second = outer.beta2 * second + (1 - outer.beta2) * delta.square()
    return first / (second.sqrt() + outer.tau), {"first": first, "second": second}
