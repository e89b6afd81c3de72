"""Batch normalisation by statistics that are estimated once, instead of by each batch's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def fix_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let every batch normalisation keep the mean and variance of what reaches it from `batches`.

    While they are estimated, each batch passes by its own statistics; the variance is that of all cases
    and positions together, without Bessel's correction.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {layer: _Sums() for layer in layers}
    hooks = [layer.register_forward_pre_hook(sums[layer].take) for layer in layers]
    with torch.no_grad():
        for batch in batches if layers else ():
            network(batch)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        layer.running_mean, layer.running_var = sums[layer].mean_and_variance()
        layer.eval()


class _Sums:
    """Count, sum and sum of squares per channel, in float64."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def take(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].detach().double()
        self._count += values.numel() // values.shape[1]
        self._sum = self._sum.to(values.device) + values.sum((0, 2, 3))
        self._squares = self._squares.to(values.device) + values.square().sum((0, 2, 3))

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = self._sum / self._count
        variance = (self._squares / self._count - mean.square()).clamp(min=0)
        return mean.float(), variance.float()
