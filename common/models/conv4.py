"""Conv4: four blocks of convolution, normalisation, ReLU and max-pooling (arXiv 1703.05175, section 3.1).

ReLU and the maximum commute, so pooling comes first and leaves ReLU a quarter of the work.

Every image is standardised by its own mean and variance first: scanners differ in gain and window more
than patients do in anatomy.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from common.errors import ConfigError
from common.sections import Model

BLOCKS = 4


def backbone(model: Model, input_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return the four blocks and how many features they make of one image `[channel, height, width]`."""
    channels, height, width = input_shape
    if min(height, width) < 2**BLOCKS:
        raise ConfigError(
            f"data.image-size {min(height, width)} is too small for conv4, which halves it {BLOCKS} times; "
            f"use at least {2**BLOCKS}."
        )
    widths = [channels, *[model.width] * BLOCKS]
    blocks = [_block(before, after, model.norm) for before, after in pairwise(widths)]
    standardise = nn.InstanceNorm2d(channels)  # without parameters: each image to mean 0 and variance 1
    return nn.Sequential(standardise, *blocks, nn.Flatten()), model.width * (height >> BLOCKS) * (
        width >> BLOCKS
    )


def _block(before: int, after: int, norm: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1),
        _normalisation(after, norm),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )


def _normalisation(channels: int, norm: str) -> nn.Module:
    """Return group normalisation (arXiv 1803.08494), or batch normalisation by the batch's own statistics.

    The latter is transductive, as in Reptile's published figures: a prediction depends on the cases
    beside it.
    """
    if norm == "group":
        groups = next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
        return nn.GroupNorm(groups, channels)
    return nn.BatchNorm2d(channels, track_running_stats=False)
