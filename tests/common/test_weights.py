"""Arithmetic on named tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import weights
from common.weights import Weights


def some(seed: int) -> Weights:
    """Return random weights of two shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(3, 2, generator=generator), "b": torch.randn(3, generator=generator)}


@given(st.integers(0, 1000))
def test_unpack_undoes_pack(seed: int) -> None:
    """A vector cut by names and shapes is the weights again, for any memory layout."""
    original = some(seed)
    original["w"] = original["w"].t().contiguous().t()
    again = weights.unpack(weights.pack(original), original)
    assert list(again) == list(original)
    assert all(torch.equal(again[name], original[name]) for name in original)


def test_mean_of_weights() -> None:
    """The mean of w and -w is zero."""
    phi = some(1)
    opposite = {name: -tensor for name, tensor in phi.items()}
    assert all(not tensor.any() for tensor in weights.mean([phi, opposite]).values())


def test_different_names_are_refused_by_name() -> None:
    """The message says which tensor is odd."""
    with pytest.raises(ValueError, match="extra"):
        weights.subtract(some(0), {**some(0), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="8 elements"):
        weights.unpack(torch.zeros(8), some(0))
