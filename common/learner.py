"""A network on its device together with its task: what every algorithm computes with.

Algorithms treat it as pure functions of weights. That it holds one module whose parameters are
overwritten in place is an economy, not a state: every use begins with `load`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from common.errors import ConfigError
from common.models import Network
from common.models.statistics import fix_statistics
from common.tasks import TaskKind
from common.weights import Weights

PREDICTION_BATCH, PREDICTION_NUMBERS = 256, 2**21
"""Cases, and numbers in their inputs, per forward pass when predicting at the most; bounds memory (and, under
norm = batch, is the batch). The second bound is the lower one for images of more than 90x90 pixels."""


class Learner:
    """One network and its task on one device."""

    def __init__(self, network: Network, task: TaskKind, device: torch.device) -> None:
        self.network = network.to(device)
        self.task = task
        self.device = device
        self._parameters: Weights = dict(network.named_parameters())
        self.initial = self.weights()
        """The weights that it was made with."""

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(value.numel() for value in self.initial.values())

    def load(self, weights: Weights) -> None:
        """Overwrite the network's parameters with `weights`."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])

    def shared(self, normalisation: str) -> Weights:
        """Return the initial weights that cross the wire: all, or all but a `local` normalisation's."""
        own = self.normalisation() if normalisation == "local" else ()
        return {name: value for name, value in self.initial.items() if name not in own}

    def calibrated(self, weights: Weights, inputs: Float[Tensor, "case *feature"]) -> Learner:
        """Return a learner whose batch normalisation keeps the statistics of `inputs` under `weights`.

        They are estimated once, without labels, and stay as they are while the network adapts and
        predicts: then no prediction depends on the cases beside it. This learner stays as it was.
        """
        other = Learner(copy.deepcopy(self.network), self.task, self.device)
        other.load(weights)
        fix_statistics(other.network, other._batches(inputs))
        return other

    def normalisation(self) -> list[str]:
        """Return the names of the batch normalisation's parameters."""
        return [
            f"{place}.{name}"
            for place, module in self.network.named_modules()
            if isinstance(module, nn.BatchNorm2d)
            for name, _ in module.named_parameters()
        ]

    def weights(self) -> Weights:
        """Return a copy of the network's parameters, on the CPU, contiguous."""
        return on_cpu(self._parameters)

    def part(self, scope: str) -> nn.Module:
        """Return what a scope trains: the adapter alone, or all of the network."""
        return self.network.adapter if scope == "adapter" else self.network

    def names(self, scope: str) -> list[str]:
        """Return the names of the parameters that a scope trains."""
        return [name for name in self._parameters if scope == "all" or name.startswith(f"{scope}.")]

    def leaves(self, weights: Weights) -> Weights:
        """Return `weights` as fresh tensors to differentiate by, on the device, laid out as the network's."""
        return {
            name: torch.empty_like(parameter).copy_(weights[name].detach()).requires_grad_()
            for name, parameter in self._parameters.items()
        }

    def loss(
        self,
        weights: Weights,
        inputs: Float[Tensor, "case *feature"],
        labels: Shaped[Tensor, "case *place"],
        shares: Float[Tensor, "case"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss under `weights` as a function of them, which autograd differentiates.

        The mean over cases, or with `shares` the sum in which each weighs as much as that.
        """
        outputs = functional_call(self.network, weights, (inputs.to(self.device),))
        return self.task.loss(outputs, labels.to(self.device), shares)

    def embed(
        self, weights: Weights, inputs: Float[Tensor, "case *feature"]
    ) -> Float[Tensor, "case feature *place"]:
        """Return the backbone's features as a function of `weights`, which autograd differentiates."""
        mine = {name.removeprefix("backbone."): weights[name] for name in self.names("backbone")}
        features: Tensor = functional_call(self.network.backbone, mine, (inputs.to(self.device),))
        return features

    def adapter(
        self, weights: Weights, *features: Float[Tensor, "_ feature *place"]
    ) -> Float[Tensor, "_ _ *place"]:
        """Return what the adapter makes of features, as a function of both its arguments."""
        mine = {name.removeprefix("adapter."): weights[name] for name in self.names("adapter")}
        outputs: Tensor = functional_call(self.network.adapter, mine, features)
        return outputs

    def features(self, inputs: Float[Tensor, "case *feature"]) -> Float[Tensor, "case _ *place"]:
        """Return the backbone's features of `inputs`, without gradients."""
        with torch.no_grad():
            return torch.cat([self.network.backbone(batch) for batch in self._batches(inputs)])

    def logits(
        self, weights: Weights, inputs: Float[Tensor, "case *feature"]
    ) -> Float[Tensor, "case output *place"]:
        """Return the outputs under `weights`, without gradients, on the CPU."""
        self.load(weights)
        with torch.no_grad():
            return torch.cat([self.network(batch) for batch in self._batches(inputs)]).cpu()

    def _batches(self, inputs: Tensor) -> Iterator[Tensor]:
        each = max(1, inputs[:1].numel())
        size = max(1, min(PREDICTION_BATCH, PREDICTION_NUMBERS // each))
        return (batch.to(self.device) for batch in torch.split(inputs, size))


def on_cpu(weights: Weights) -> Weights:
    """Return a copy of `weights`, on the CPU, contiguous."""
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format).cpu()
        for name, value in weights.items()
    }


def device_of(choice: str) -> torch.device:
    """Return the device of a configuration's choice: `auto` is CUDA where there is one."""
    there = choice != "cpu" and torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise ConfigError("engine.device is cuda, and PyTorch finds no CUDA here; use auto or cpu.")
    return torch.device("cuda" if there else "cpu")
