"""From an image as shown to the square tensor that a network takes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

LUMINANCE = torch.tensor((0.299, 0.587, 0.114))
"""Weights of red, green and blue in luminance, as in YBR_FULL's Y (PS3.3 C.7.6.3.1.2)."""


def with_channels(
    shown: Float[Tensor, "given height width"], channels: int
) -> Float[Tensor, "channel height width"]:
    """Return RGB as luminance where one channel is wanted, grey repeated where three are."""
    if channels == 1 and len(shown) == 3:
        return (LUMINANCE @ shown.flatten(1)).view(1, *shown.shape[1:])
    return shown.expand(channels, -1, -1)


def fit_square(
    shown: Float[Tensor, "channel height width"], *, aspect: float, size: int
) -> Float[Tensor, "channel size size"]:
    """Return the image resampled with antialiasing to fit the square, centred, with 0 around it.

    `aspect` is a pixel's height over its width; the image keeps its physical proportions.
    """
    height, width = shown.shape[1] * aspect, float(shown.shape[2])
    longest = max(height, width)
    rows, columns = (max(1, round(size * length / longest)) for length in (height, width))
    means = _means(_means(shown, 1, rows), 2, columns)
    fitted = interpolate(means[None], (rows, columns), mode="bilinear", antialias=True)[0]
    top, left = (size - rows) // 2, (size - columns) // 2
    return pad(fitted, (left, size - columns - left, top, size - rows - top)).clamp_(0, 1)


def _means(
    shown: Float[Tensor, "channel height width"], axis: int, wanted: int
) -> Float[Tensor, "channel h w"]:
    """Average whole pixels along `axis`, as many as divide it and leave twice what is wanted or more.

    Several times faster than the filter that follows, and next to it hardly visible.
    """
    given = shown.shape[axis]
    step = next(step for step in range(max(1, given // (2 * wanted)), 0, -1) if given % step == 0)
    if step == 1:
        return shown
    grouped = (*shown.shape[:axis], given // step, step, *shown.shape[axis + 1 :])
    return shown.reshape(grouped).mean(axis + 1)
