"""What every network of images normalises by: each image by itself first, then features by group or batch."""

from __future__ import annotations

from torch import nn

from common.models.norms import BatchNorm, GroupNorm


def standardised(channels: int, *layers: nn.Module) -> nn.Module:
    """Return `layers` behind a standardisation of every image by its own mean and variance, per channel.

    Scanners differ in gain and window more than patients do in anatomy.
    """
    return nn.Sequential(nn.InstanceNorm2d(channels), *layers)  # which has no parameters


def normalisation(channels: int, norm: str) -> nn.Module:
    """Return group normalisation (arXiv 1803.08494), or batch normalisation by the batch's own statistics.

    The latter is transductive, as in Reptile's published figures: a prediction depends on the cases
    beside it. Neither has anything but a scale and a shift per channel in its state.
    """
    if norm == "group":
        groups = next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
        return GroupNorm(groups, channels)
    return BatchNorm(channels)


def replace_batch_norm(network: nn.Module, norm: str) -> None:
    """Put `normalisation` in the place of every batch normalisation, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, normalisation(child.num_features, norm))
