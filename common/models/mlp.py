"""Networks for tables: a multi-layer perceptron, and logistic regression as the adapter alone."""

from __future__ import annotations

from torch import nn

from common.sections import Model


def backbone(model: Model, input_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return two hidden ReLU layers of `model.width` units and the number of features they make."""
    (features,) = input_shape
    layers = nn.Sequential(
        nn.Linear(features, model.width), nn.ReLU(), nn.Linear(model.width, model.width), nn.ReLU()
    )
    return layers, model.width


def no_backbone(_model: Model, input_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return the identity: the adapter alone is then multinomial logistic regression."""
    (features,) = input_shape
    return nn.Identity(), features
