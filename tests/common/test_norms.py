"""Normalisation against PyTorch's own layers: values, first derivatives, and the second ones made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.models.norms import BatchNorm, GroupNorm

LAYERS: dict[str, tuple[nn.Module, nn.Module]] = {
    "batch": (BatchNorm(6), nn.BatchNorm2d(6, track_running_stats=False)),
    "three groups": (GroupNorm(3, 6), nn.GroupNorm(3, 6)),
    "one group": (GroupNorm(1, 6), nn.GroupNorm(1, 6)),
    "a group a channel": (GroupNorm(6, 6), nn.GroupNorm(6, 6)),
}
LAYOUTS = ("contiguous", "channels last", "transposed")
layers = pytest.mark.parametrize("layer", LAYERS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def inputs(layout: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return feature maps with a mean of their own, weight and bias."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, 2, 4, dtype=dtype, generator=generator) + 0.5
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        x = x.permute(3, 1, 0, 2)
    weight, bias = torch.randn(2, 6, dtype=dtype, generator=generator)
    leaves = (x.detach(), weight.clone(), bias.clone())
    return tuple(leaf.requires_grad_() for leaf in leaves)  # type: ignore[return-value]


def applied(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the layer's output as a function of all three."""
    found: Tensor = functional_call(module, {"weight": weight, "bias": bias}, (x,))
    return found


@layers
@layouts
def test_values_and_gradients_are_pytorchs(layer: str, layout: str) -> None:
    """The same kernels, so the same bits, unless PyTorch makes a copy before and we do not."""
    found = []
    for module in LAYERS[layer]:
        leaves = inputs(layout, torch.float32)
        y = applied(module, *leaves)
        found.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for mine, theirs in zip(*found, strict=True):
        if layout == "transposed":
            torch.testing.assert_close(mine, theirs)
        else:
            assert torch.equal(mine, theirs)


@layers
@layouts
def test_the_second_derivative_is_the_numerical_one(layer: str, layout: str) -> None:
    """Of all three inputs and of what comes down from above, against finite differences."""
    mine, _ = LAYERS[layer]
    assert torch.autograd.gradgradcheck(lambda *leaves: applied(mine, *leaves), inputs(layout))


@layers
@layouts
def test_a_hessian_product_is_pytorchs(layer: str, layout: str) -> None:
    """Of a loss that bends in y as well, in float32."""
    found = []
    for module in LAYERS[layer]:
        leaves = inputs(layout, torch.float32)
        loss = applied(module, *leaves).exp().mean()
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        directions = [torch.linspace(-1, 1, leaf.numel()).view(leaf.shape) for leaf in leaves]
        found.append(torch.autograd.grad(gradients, leaves, directions))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@layers
def test_nothing_but_ours_computes_it(layer: str) -> None:
    """PyTorch's layer would give the same numbers, more slowly."""
    mine, _ = LAYERS[layer]
    assert type(applied(mine, *inputs("contiguous")).grad_fn).__name__ == "_NormaliseBackward"


@layers
def test_a_third_derivative_is_refused(layer: str) -> None:
    """It would silently lack what the second one depends on."""
    mine, _ = LAYERS[layer]
    x, weight, bias = inputs("contiguous")
    (first,) = torch.autograd.grad(applied(mine, x, weight, bias).exp().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="out="):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


def test_without_statistics_evaluation_is_by_the_batch_too() -> None:
    """`eval` alone changes nothing: there is nothing else to normalise by."""
    x = torch.randn(3, 6, 2, 2)
    assert torch.equal(BatchNorm(6).eval()(x), BatchNorm(6)(x))


def test_other_channels_are_refused() -> None:
    """PyTorch's kernel would read past the end."""
    with pytest.raises(ValueError, match="5 channels where 6"):
        BatchNorm(6)(torch.zeros(3, 5, 2, 2))


def test_given_statistics_are_used() -> None:
    """In `eval` the batch has no say; its derivatives are PyTorch's."""
    layer = BatchNorm(6)
    layer.running_mean, layer.running_var = torch.ones(6), 4 * torch.ones(6)
    x = torch.randn(3, 6, 2, 2)
    torch.testing.assert_close(layer.eval()(x), (x - 1) / 2)


def test_a_single_number_has_no_deviation() -> None:
    """One case of one place a channel would come out as the bias whatever it was."""
    with pytest.raises(ValueError, match="more cases or larger images"):
        BatchNorm(6)(torch.zeros(1, 6, 1, 1))
