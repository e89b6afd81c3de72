"""Four algorithms as their papers have them, in plain autograd and contiguous memory, with no economies.

The references of benchmarks/metalearning.py: each returns the delta of one outer step on some episodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.cases import Cases, Episode
from common.inner_loop import minibatches
from common.sections import Training
from common.seeds import Draws
from common.weights import Weights


class Adam:
    """Adam without momentum, equation by equation (arXiv 1412.6980, algorithm 1 with beta1 = 0)."""

    def __init__(self) -> None:
        self.steps = 0
        self.second: dict[str, Tensor] = {}

    def step(self, here: Weights, loss: Tensor, lr: float) -> Weights:
        """Return the weights after one step down the gradient of `loss`."""
        found = dict(zip(here, torch.autograd.grad(loss, list(here.values())), strict=True))
        self.steps += 1
        moved = {}
        for name, gradient in found.items():
            before = self.second.get(name, torch.zeros_like(gradient))
            self.second[name] = 0.999 * before + 0.001 * gradient**2
            unbiased = self.second[name] / (1 - 0.999**self.steps)
            moved[name] = here[name].detach() - lr * gradient / (unbiased.sqrt() + 1e-8)
        return {name: value.requires_grad_() for name, value in moved.items()}


def loss(network: nn.Module, weights: Weights, cases: Cases) -> Tensor:
    """Return the mean cross-entropy under `weights`."""
    return nn.functional.cross_entropy(functional_call(network, weights, (cases.inputs,)), cases.labels)


def maml(
    network: nn.Module,
    phi: Weights,
    episodes: Sequence[Episode],
    training: Training,
    _draws: Draws,
    _adam: Adam,
) -> Weights:
    """Return minus the mean gradient: of the query loss through k steps, or after them (first order)."""
    start = {name: value.clone().requires_grad_() for name, value in phi.items()}
    total = torch.zeros(())
    for episode in episodes:
        here = dict(start)
        for _step in range(training.inner_steps):
            found = torch.autograd.grad(
                loss(network, here, episode.support),
                list(here.values()),
                create_graph=not training.first_order,
            )
            here = {
                name: value - training.inner_lr * gradient
                for (name, value), gradient in zip(here.items(), found, strict=True)
            }
        total = total + loss(network, here, episode.query)
    found = torch.autograd.grad(total / len(episodes), list(start.values()))
    return {name: -gradient for name, gradient in zip(start, found, strict=True)}


def reptile(
    network: nn.Module,
    phi: Weights,
    episodes: Sequence[Episode],
    training: Training,
    draws: Draws,
    adam: Adam,
) -> Weights:
    """Return the mean of phi_tilde - phi, phi_tilde after k steps of an Adam that is never reset."""
    total = {name: torch.zeros_like(value) for name, value in phi.items()}
    for episode in episodes:
        here = {name: value.clone().requires_grad_() for name, value in phi.items()}
        size, steps = training.batch_size, training.inner_steps
        for rows, _ in minibatches(episode.support, size, steps, draws):
            here = adam.step(here, loss(network, here, episode.support.at(rows)), training.inner_lr)
        total = {name: total[name] + here[name].detach() - phi[name] for name in phi}
    return {name: value / len(episodes) for name, value in total.items()}


def protonet(
    network: nn.Module,
    phi: Weights,
    episodes: Sequence[Episode],
    training: Training,
    _draws: Draws,
    adam: Adam,
) -> Weights:
    """Return phi_tilde - phi after one step per episode of an Adam that is never reset."""
    here = {name: value.clone().requires_grad_() for name, value in phi.items()}
    for episode in episodes:
        support, query = (
            functional_call(network, here, (s.inputs,)) for s in (episode.support, episode.query)
        )
        ways = range(int(episode.support.labels.max()) + 1)
        prototypes = torch.stack([support[episode.support.labels == way].mean(0) for way in ways])
        distances = torch.cdist(query, prototypes) ** 2
        here = adam.step(
            here, nn.functional.cross_entropy(-distances, episode.query.labels), training.inner_lr
        )
    return {name: here[name].detach() - phi[name] for name in phi}


PAPERS = {"maml": maml, "fomaml": maml, "reptile": reptile, "protonet": protonet}
