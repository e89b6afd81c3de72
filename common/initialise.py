"""From a configuration to a learner with its initial weights: the same on both sides of the wire."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from common import heads, seeds
from common.algorithms import ALGORITHMS
from common.config import Config
from common.errors import ConfigError
from common.learner import Learner
from common.models import build
from common.tasks import kind_of
from common.weights import Weights


def learner_for(config: Config, input_shape: tuple[int, ...], device: torch.device) -> Learner:
    """Return the configured network with the run's own head, initialised from the run's seed."""
    classes = config.training.way or len(heads.seen(config))
    return _learner(config, input_shape, device, _head(config, classes))


def learner_of_algorithm(
    config: Config, algorithm: str, input_shape: tuple[int, ...], device: torch.device, classes: int = 0
) -> Learner:
    """Return an algorithm's network: with its adapter where it compares cases, else with a head.

    The head has the outputs that cross where it is phi's own, and begins at 0 where it is a fresh one for
    `classes` (0: none at all).
    """
    return _learner(config, input_shape, device, _adapter(config, algorithm, classes))


def shared_weights(config: Config, algorithm: str, input_shape: tuple[int, ...]) -> Weights:
    """Return what of an algorithm's initial weights crosses the wire; every training begins with it.

    Raises ConfigError where that is nothing: an algorithm without a head on a network that is but a head.
    """
    learner = learner_of_algorithm(config, algorithm, input_shape, torch.device("cpu"))
    shared = learner.shared(config.training_of(algorithm).normalisation)
    if not shared:
        raise ConfigError(
            f"{algorithm} has nothing to learn or send: model.name {config.model.name} is a head alone, and "
            "this algorithm shares none. Use a network with features of its own, e.g. mlp."
        )
    return shared


def parameters_of(config: Config, algorithm: str, input_shape: tuple[int, ...]) -> int:
    """Return how many parameters an algorithm's network has, without making room for any of them."""
    with torch.device("meta"):
        network = build(config.model, input_shape, _adapter(config, algorithm, 0), seed=0)
    return sum(parameter.numel() for parameter in network.parameters())


def _learner(
    config: Config, input_shape: tuple[int, ...], device: torch.device, adapter: Callable[[int], nn.Module]
) -> Learner:
    network = build(config.model, input_shape, adapter, seed=seeds.derive(config.seed, "phi"))
    return Learner(network, kind_of(config.task), device)


def _adapter(config: Config, algorithm: str, classes: int) -> Callable[[int], nn.Module]:
    adapter = ALGORITHMS[algorithm].adapter
    if adapter is None and not classes and config.training_of(algorithm).head == "shared":
        adapter = _head(config, heads.outputs(config, algorithm))
    return adapter or _fresh_head(config, classes)


def _head(config: Config, classes: int) -> Callable[[int], nn.Module]:
    kind = kind_of(config.task)
    return lambda features: kind.head(features, kind.outputs(classes))


def _fresh_head(config: Config, classes: int) -> Callable[[int], nn.Module]:
    """Return a head of zeros: it prefers no class, whatever their number and order; none for no classes."""

    def build_head(features: int) -> nn.Module:
        if not classes:
            return nn.Identity()
        head = _head(config, classes)(features)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head

    return build_head
