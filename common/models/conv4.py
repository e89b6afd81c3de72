"""Conv4: four blocks of convolution, normalisation, ReLU and max-pooling (arXiv 1703.05175, section 3.1).

ReLU and the maximum commute, so pooling comes first and leaves ReLU a quarter of the work.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from common.errors import ConfigError
from common.models.normalisation import normalisation, standardised
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
    features = model.width * (height >> BLOCKS) * (width >> BLOCKS)
    return standardised(channels, *blocks, nn.Flatten()), features


def _block(before: int, after: int, norm: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1),
        normalisation(after, norm),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )
