"""Networks of images from MONAI: ResNet-18, DenseNet-121 and a U-Net with residual units.

The papers: arXiv 1512.03385, arXiv 1608.06993 and doi 10.1007/978-3-030-12029-0_40.

All are initialised by MONAI's defaults and have no dropout. They are built with batch normalisation, which
is then replaced: MONAI's keeps running statistics, and its ResNet hands any other to its first layer alone.

MONAI takes seconds to import; whoever builds one of these waits, and nobody else.
"""

from __future__ import annotations

from torch import nn

from common.errors import ConfigError
from common.models.normalisation import replace_batch_norm, standardised
from common.sections import Model

LEVELS = (1, 2, 4, 8)
"""Channels of the U-Net's levels, in widths."""
HALVINGS = len(LEVELS) - 1


def resnet18(model: Model, input_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return ResNet-18 up to its global pooling, and that it makes 512 features of an image."""
    from monai.networks.nets.resnet import resnet18

    _refuse_small(model, input_shape)
    network = resnet18(
        pretrained=False,
        spatial_dims=2,
        n_input_channels=input_shape[0],
        conv1_t_stride=2,  # the paper's; MONAI's default is for volumes
        bias_downsample=False,  # MONAI's default is for weights of its own
        feed_forward=False,
    )
    return _finished(network, model, input_shape), 512


def densenet121(model: Model, input_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return DenseNet-121 up to its global pooling, and that it makes 1024 features of an image."""
    from monai.networks.nets.densenet import DenseNet121

    _refuse_small(model, input_shape)
    network = DenseNet121(spatial_dims=2, in_channels=input_shape[0], out_channels=1)
    del network.class_layers[-1]  # the fully connected layer, which the adapter stands for
    return _finished(network, model, input_shape), 1024


def unet(model: Model, input_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return a U-Net of four levels, and that it makes `model.width` features of every pixel.

    Its maps have the height and width of the image `[channel, height, width]`.
    """
    from monai.networks.nets.unet import UNet

    step = 2**HALVINGS
    if any(side % step or side < 2 * step for side in input_shape[1:]):
        raise ConfigError(
            f"data.image-size {min(input_shape[1:])} does not fit unet, which halves it {HALVINGS} times and "
            f"doubles it again; use a multiple of {step}, at least {2 * step}."
        )
    network = UNet(
        spatial_dims=2,
        in_channels=input_shape[0],
        out_channels=model.width,
        channels=[model.width * level for level in LEVELS],
        strides=[2] * HALVINGS,
        num_res_units=2,
        norm="batch",
    )
    return _finished(network, model, input_shape), model.width


def _refuse_small(model: Model, input_shape: tuple[int, ...]) -> None:
    """Raise ConfigError where nothing is left of the image after five halvings.

    A single pixel is too little for batch normalisation: a batch may be of one case, and one value has no
    variance.
    """
    side, smallest = min(input_shape[1:]), 64 if model.norm == "batch" else 32
    if side < smallest:
        raise ConfigError(
            f"data.image-size {side} is too small for {model.name} with norm {model.norm}, which halves it 5 "
            f"times; use at least {smallest}."
        )


def _finished(network: nn.Module, model: Model, input_shape: tuple[int, ...]) -> nn.Module:
    replace_batch_norm(network, model.norm)
    return standardised(input_shape[0], network)
