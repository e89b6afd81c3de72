"""Every network is adapter(backbone(x)); which one is the configuration's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UnfitError
from common.models import conv4, mlp, monai_nets
from common.sections import Model


@dataclass(frozen=True)
class Backbone:
    """How a backbone is built, what it reads and what it makes."""

    build: Callable[[Model, tuple[int, ...]], tuple[nn.Module, int]]
    """From an input's shape to the module and how many features it makes."""
    images: bool = True
    """Whether it reads images `[channel, height, width]`; else rows of a table `[feature]`."""
    maps: bool = False
    """Whether it makes its features of every pixel, `[case, feature, height, width]`; else of every case."""


BACKBONES = {
    "conv4": Backbone(conv4.backbone),
    "resnet18": Backbone(monai_nets.resnet18),
    "densenet121": Backbone(monai_nets.densenet121),
    "unet": Backbone(monai_nets.unet, maps=True),
    "mlp": Backbone(mlp.backbone, images=False),
    "linear": Backbone(mlp.no_backbone, images=False),
}


class Network(nn.Module):
    """F(x) = A(B(x)). Its state is its parameters alone: no running statistics, no counters."""

    def __init__(self, backbone: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = adapter

    def forward(self, inputs: Float[Tensor, "case *feature"]) -> Float[Tensor, "case output *place"]:
        """Return one row of outputs (logits) per case, or a map of them where the backbone makes maps."""
        outputs: Tensor = self.adapter(self.backbone(inputs))
        return outputs


def build(
    model: Model, input_shape: tuple[int, ...], adapter: Callable[[int], nn.Module], *, seed: int
) -> Network:
    """Return a network for inputs of `input_shape`, initialised by PyTorch's defaults from `seed`.

    `adapter` is given the number of features.
    The global generator is left as it was. Convolutions are laid out channels-last, which is 1.3 to
    1.7 times faster on a CPU and changes no shape. Raises UnfitError where one is for images and the
    other for tables, ConfigError where the input is too small.
    """
    images = len(input_shape) == 3
    chosen = BACKBONES[model.name]
    if images != chosen.images:
        kind = "images" if images else "tables"
        fitting = " or ".join(name for name, other in BACKBONES.items() if other.images == images)
        raise UnfitError(f"model.name {model.name} cannot read {kind}; use {fitting}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, features = chosen.build(model, input_shape)
        network = Network(backbone, adapter(features))
    return network.to(memory_format=torch.channels_last) if images else network  # type: ignore[call-overload]
