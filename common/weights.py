"""Arithmetic on named tensors.

Weights are a network's parameters by name. Integer buffers (BatchNorm counters) and running
statistics are not weights: nothing here touches them, and no network of ours keeps any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

Weights = dict[str, Tensor]


def subtract(left: Weights, right: Weights) -> Weights:
    """Return left - right, tensor by tensor."""
    _same_names(left, right)
    return {name: left[name] - right[name] for name in left}


def add(left: Weights, right: Weights, *, scale: float = 1.0) -> Weights:
    """Return left + scale * right, tensor by tensor."""
    _same_names(left, right)
    return {name: left[name] + scale * right[name] for name in left}


def scale(weights: Weights, factor: float) -> Weights:
    """Return factor * weights."""
    return {name: factor * value for name, value in weights.items()}


def mean(many: Sequence[Weights]) -> Weights:
    """Return the mean of at least one set of weights."""
    if not many:
        raise ValueError("the mean of no weights does not exist; give at least one.")
    if len(many) == 1:
        return dict(many[0])
    for other in many[1:]:
        _same_names(many[0], other)
    return {name: torch.stack([weights[name] for weights in many]).mean(0) for name in many[0]}


def pack(weights: Weights) -> Float[Tensor, "parameter"]:
    """Return all tensors end to end as one vector, in the order of their names' first appearance."""
    return torch.cat([tensor.reshape(-1) for tensor in weights.values()])


def clip(vector: Float[Tensor, "parameter"], norm: float, magnitude: float) -> Float[Tensor, "parameter"]:
    """Return `vector`, shortened to L2 norm `norm` where it is longer, no coordinate beyond `magnitude`."""
    length = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
    shortened = vector * (norm / length) if length > norm else vector
    return shortened.clamp(-magnitude, magnitude)


def unpack(vector: Float[Tensor, "parameter"], like: Weights) -> Weights:
    """Return `vector` cut into the names and shapes of `like`; the inverse of `pack`."""
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.numel() != sum(sizes):
        raise ValueError(f"the vector has {vector.numel()} elements; these weights have {sum(sizes)}.")
    parts = torch.split(vector, sizes)
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}


def read_tensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """Return a safetensors file's tensors and metadata. SafetensorError or OSError: it cannot be read."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, file.metadata() or {}


def _same_names(left: Weights, right: Weights) -> None:
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise ValueError(f"both weights must name the same tensors; they differ in {odd}.")
