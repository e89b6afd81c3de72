"""Group and batch normalisation whose second derivative costs about as much as their first.

With x' = r (x - m), where m and r are mean and inverse deviation over a set of places (an image's channels of
one group, or the batch's of one channel), <.> the mean over it, and a = weight * dy:

    y       = weight * x' + bias
    dx      = r (a - <a> - x' <a x'>)        dweight = sum dy x'        dbias = sum dy

PyTorch's kernels compute these. MAML needs the derivative of dx, dweight and dbias as well, for which PyTorch
makes dozens of passes over the feature maps. By hand it takes a few sums over each map; the results are u, dy
and x in linear combinations whose coefficients are the same all over a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Maps = Float[Tensor, "case channel height width"]
Scalars = Float[Tensor, "#case channel"]
"""One number for every feature map, or for every channel."""


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` of feature maps."""

    def forward(self, x: Maps) -> Maps:
        """Return the feature maps, normalised image by image and group by group."""
        y: Tensor = _Normalise.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
        return y


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` by the batch's own statistics; or, in `eval`, by those that it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: Maps) -> Maps:
        """Return the feature maps, normalised channel by channel."""
        if self.running_mean is not None:
            return super().forward(x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"{x.shape[1]} channels where {self.num_features} are normalised.")
        if x[:, 0].numel() == 1:
            raise ValueError("batch normalisation of a single number; give it more cases or larger images.")
        y: Tensor = _Normalise.apply(x, self.weight, self.bias, 0, self.eps)  # type: ignore[no-untyped-call]
        return y


class _Normalise(torch.autograd.Function):
    """From x, weight `[channel]` and bias `[channel]` to y; 0 groups: over the batch."""

    @staticmethod
    def forward(ctx: Any, x: Maps, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Maps:
        if groups:
            y, mean, inverse = torch.native_group_norm(
                _laid_out(x, x, groups), weight, bias, *_size(x), groups, eps
            )
        else:
            y, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.settings = groups, eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Maps) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        found = _Gradient.apply(dy, x, weight, mean, inverse, *ctx.settings)  # type: ignore[no-untyped-call]
        return (*found, None, None)


class _Gradient(torch.autograd.Function):
    """From dy, x and weight to dx, dweight and dbias; mean and inverse deviation are x's."""

    @staticmethod
    def forward(
        ctx: Any, dy: Maps, x: Maps, weight: Tensor, mean: Tensor, inverse: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dy, x, wanted = _laid_out(dy, x, groups), _laid_out(x, x, groups), [True, True, True]
        if groups:
            found = torch.ops.aten.native_group_norm_backward(
                dy, x, mean, inverse, weight, *_size(x), groups, wanted
            )
        else:
            found = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, None, None, mean, inverse, True, eps, wanted
            )
        ctx.save_for_backward(dy, x, weight, mean, inverse)
        ctx.groups = groups
        dx, dweight, dbias = found
        return dx, dweight, dbias

    @staticmethod
    def backward(ctx: Any, u: Maps, v: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by dy, x and weight of u . dx + v . dweight + w . dbias.

        With x' held, that of u . dx by a is q = r (u - <u> - x' <u x'>), and of u . dx + v . dweight by x'
        it is g = v dy - r (<a x'> u + <u x'> a). Through x', and through r, which stands before dx:

            by dy      weight * q + v x' + w
            by weight  sum dy q
            by x       r (g - <g> - x' <g x'>) - r^2 x' (<u a> - <u> <a> - <u x'> <a x'>)
        """
        dy, x, weight, mean, inverse = ctx.saved_tensors
        mean, r = _per_map(mean, x, ctx.groups), _per_map(inverse, x, ctx.groups)

        def average(sums: Scalars) -> Scalars:
            return _over_set(sums, x, ctx.groups)

        sum_u, sum_dy = u.sum((2, 3)), dy.sum((2, 3))
        sum_u_dy, sum_u_x, sum_dy_x = _sums_of_products((u, dy), (u, x), (dy, x))
        sum_u_x, sum_dy_x = r * (sum_u_x - mean * sum_u), r * (sum_dy_x - mean * sum_dy)
        u_, ux, ua = average(sum_u), average(sum_u_x), average(weight * sum_u_dy)
        a_, ax = average(weight * sum_dy), average(weight * sum_dy_x)
        g_ = average(v * sum_dy) - r * (ax * u_ + ux * a_)
        gx = average(v * sum_dy_x) - 2 * r * ax * ux

        by_dy = _combined(x, mean, r, (u, weight * r), times_x=v - weight * r * ux, plus=w - weight * r * u_)
        by_weight = (r * (sum_u_dy - u_ * sum_dy - ux * sum_dy_x)).sum(0)
        pull = -r * gx - r.square() * (ua - u_ * a_ - ux * ax)
        by_x = _combined(
            x, mean, r, (u, -r.square() * ax), (dy, r * (v - r * ux * weight)), times_x=pull, plus=-r * g_
        )
        return by_dy, by_x, by_weight, None, None, None, None


def _combined(
    x: Maps, mean: Scalars, r: Scalars, *terms: tuple[Maps, Scalars], times_x: Scalars, plus: Scalars
) -> Maps:
    """Return the sum of maps times their coefficients, of x' times `times_x`, and of `plus`."""
    total = torch.addcmul((plus - times_x * r * mean)[:, :, None, None], x, (times_x * r)[:, :, None, None])
    for maps, coefficient in terms:
        total.addcmul_(maps, coefficient[:, :, None, None])
    return total


def _sums_of_products(*pairs: tuple[Maps, Maps]) -> Iterator[Scalars]:
    """Yield the sum of each product over each feature map; one piece of memory serves all products."""
    product = None
    for one, other in pairs:
        product = torch.mul(one, other, out=product)
        yield product.sum((2, 3))


def _per_map(statistic: Tensor, x: Maps, groups: int) -> Scalars:
    """Return a statistic `[channel]` or `[case, group]` for every channel of every set."""
    return statistic.repeat_interleave(x.shape[1] // groups, 1) if groups else statistic[None]


def _over_set(sums: Scalars, x: Maps, groups: int) -> Scalars:
    """Return the mean over each set, from the sums over its feature maps."""
    cases, channels, places = _size(x)
    if groups:
        together = sums.view(cases, groups, channels // groups).mean(2)
        return together.repeat_interleave(channels // groups, 1) / places
    return sums.mean(0, keepdim=True) / places


def _size(x: Maps) -> tuple[int, int, int]:
    """Return how many cases, channels and places in a map."""
    cases, channels, height, width = x.shape
    return cases, channels, height * width


def _laid_out(maps: Maps, like: Maps, groups: int) -> Maps:
    """Return `maps` laid out as `like`, or contiguous where CUDA has no other kernel."""
    either = like.device.type == "cpu" or not groups
    channels_last = either and like.is_contiguous(memory_format=torch.channels_last)
    return maps.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
