"""A network on its device together with its task: what every algorithm computes with.

Algorithms treat it as pure functions of weights. That it holds one module whose parameters are
overwritten in place is an economy, not a state: every use begins with `load`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import ConfigError
from common.models import Network
from common.tasks import TaskKind
from common.weights import Weights, unpack

PREDICTION_BATCH = 256
"""Cases per forward pass when predicting; bounds memory (and, under norm = batch, is the batch)."""


class Learner:
    """One network and its task on one device."""

    def __init__(self, network: Network, task: TaskKind, device: torch.device) -> None:
        self.network = network.to(device)
        self.task = task
        self.device = device
        self._parameters: Weights = dict(network.named_parameters())

    def load(self, weights: Weights) -> None:
        """Overwrite the network's parameters with `weights`."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])

    def unpack(self, vector: Float[Tensor, "parameter"]) -> Weights:
        """Return `vector` cut into this network's names and shapes."""
        return unpack(vector, self._parameters)

    def size(self) -> int:
        """Return how many parameters the network has."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    def weights(self) -> Weights:
        """Return a copy of the network's parameters, on the CPU, contiguous."""
        return {
            name: parameter.detach().clone(memory_format=torch.contiguous_format).cpu()
            for name, parameter in self._parameters.items()
        }

    def part(self, scope: str) -> nn.Module:
        """Return what a scope trains: the adapter alone, or all of the network."""
        return self.network.adapter if scope == "adapter" else self.network

    def features(self, inputs: Float[Tensor, "case *feature"]) -> Float[Tensor, "case _"]:
        """Return the backbone's features of `inputs`, without gradients."""
        with torch.no_grad():
            return torch.cat([self.network.backbone(batch) for batch in self._batches(inputs)])

    def logits(
        self, weights: Weights, inputs: Float[Tensor, "case *feature"]
    ) -> Float[Tensor, "case output"]:
        """Return the outputs under `weights`, without gradients, on the CPU."""
        self.load(weights)
        with torch.no_grad():
            return torch.cat([self.network(batch) for batch in self._batches(inputs)]).cpu()

    def _batches(self, inputs: Tensor) -> Iterator[Tensor]:
        return (batch.to(self.device) for batch in torch.split(inputs, PREDICTION_BATCH))


def device_of(choice: str) -> torch.device:
    """Return the device of a configuration's choice: `auto` is CUDA where there is one."""
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise ConfigError("engine.device is cuda, and PyTorch finds no CUDA here; use auto or cpu.")
    return torch.device("cuda" if there and choice != "cpu" else "cpu")
