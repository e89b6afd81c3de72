"""MAML (Finn, Abbeel and Levine 2017, arXiv 1703.03400).

At a site, for each episode:   phi_0 = phi,  phi_{i+1} = phi_i - inner_lr * grad L_support(phi_i)
                               g = d L_query(phi_k) / d phi
                                 = (I - inner_lr H_0) ... (I - inner_lr H_{k-1}) grad L_query(phi_k),
                               H_i the Hessian of L_support at phi_i
The site sends:                delta = -mean over episodes of g
The coordinator:               phi <- phi + meta_lr * mean over sites of delta

`first-order` takes every H_i as 0 (FOMAML). `meta-steps` is Per-FedAvg (Fallah, Mokhtari and Ozdaglar 2020,
arXiv 2002.07948): the site takes so many outer steps of `meta-step-lr` by itself, each on its share of the
episodes, and sends the sum of their -g. With a plain outer step of meta_lr = meta-step-lr the coordinator
then adopts the mean of the sites' own phi. `checkpoint` keeps no step's graph but computes it again on
the way back: the memory of one step for a third more time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common import weights
from common.algorithms.algorithm import Algorithm, Update, inner_settings
from common.cases import Cases, Episode
from common.inner_loop import InnerLoop, inner_loop, minibatches
from common.learner import PREDICTION_BATCH, Learner, on_cpu
from common.optimizer import Memory
from common.sections import Training
from common.seeds import Draws
from common.weights import Weights

Gradients = tuple[Tensor, ...]
LONGEST = 10.0
"""L2 norm to which a site clips the gradient that it sends."""
ADAM = {"optimizer": "adam", "meta-lr": 0.001, "meta-lr-final": 0.001}
"""The coordinator's step that the paper takes."""


def local_update(
    learner: Learner,
    phi: Weights,
    episodes: Sequence[Episode],
    training: Training,
    draws: Draws,
    memory: Memory,
) -> Update:
    """Return minus the sum over meta-steps of the mean over episodes of g, and the query losses."""
    here, steps, loss_sum = phi, [], 0.0
    for turn in range(training.meta_steps):
        dealt = episodes[turn :: training.meta_steps]
        found = [outer_gradient(learner, here, episode, training, draws, memory) for episode in dealt]
        steps.append(weights.mean([outer for outer, _ in found]))
        here = weights.add(here, steps[-1], scale=-training.meta_step_lr)
        loss_sum += sum(loss for _, loss in found)
    delta = weights.scale(weights.mean(steps), -float(training.meta_steps))
    return Update(delta, loss_sum, len(episodes))


def outer_gradient(
    learner: Learner,
    phi: Weights,
    episode: Episode,
    training: Training,
    draws: Draws,
    memory: Memory,
) -> tuple[Weights, float]:
    """Return the gradient by phi of an episode's query loss after its inner loop, and that loss."""
    inner = inner_settings(training)
    if training.first_order:
        phi_tilde, _ = inner_loop(learner, phi, episode.support, inner, draws, memory)
        outer, loss = gradient(learner, phi_tilde, episode.query)
        return on_cpu(outer), loss
    phi_tilde, steps = _descend(learner, phi, episode.support, inner, draws, keep=not training.checkpoint)
    outer, loss = gradient(learner, phi_tilde, episode.query)
    for step in reversed(steps):
        outer = step.pull_back(learner, outer, inner.lr)
    return on_cpu(outer), loss


def gradient(learner: Learner, at: Weights, cases: Cases) -> tuple[Weights, float]:
    """Return gradient and value of the mean loss over patients, some cases at a time to bound memory."""
    leaves, shares = learner.leaves(at), cases.shares
    shares = torch.full((len(cases),), 1 / len(cases), dtype=torch.float64) if shares is None else shares
    parts = []
    for index in torch.split(torch.arange(len(cases)), PREDICTION_BATCH):
        loss = learner.loss(leaves, cases.inputs[index], cases.labels[index], shares[index])
        parts.append((loss.detach(), torch.autograd.grad(loss, list(leaves.values()))))
    sums = [torch.stack(parts_of).sum(0) for parts_of in zip(*(found for _, found in parts), strict=True)]
    return dict(zip(leaves, sums, strict=True)), float(sum(loss for loss, _ in parts))


@dataclass(frozen=True)
class _Step:
    """One inner step from phi_i on a batch of the support; its gradient's graph is kept or made again."""

    leaves: Weights
    moving: Sequence[str]
    inputs: Tensor
    labels: Tensor
    shares: Tensor | None
    kept: Gradients = ()

    def gradient(self, learner: Learner, *, graph: bool) -> Gradients:
        """Return the support loss's gradient in the order of `moving`."""
        loss = learner.loss(self.leaves, self.inputs, self.labels, self.shares)
        return torch.autograd.grad(loss, [self.leaves[name] for name in self.moving], create_graph=graph)

    def pull_back(self, learner: Learner, outer: Weights, lr: float) -> Weights:
        """Return (I - lr H_i) outer: the gradient at phi_i of what has the gradient `outer` at phi_{i+1}."""
        products = torch.autograd.grad(
            self.kept or self.gradient(learner, graph=True),
            list(self.leaves.values()),
            [outer[name] for name in self.moving],
            materialize_grads=True,
        )
        return {name: outer[name] - lr * product for name, product in zip(outer, products, strict=True)}


def _descend(
    learner: Learner,
    phi: Weights,
    support: Cases,
    inner: InnerLoop,
    draws: Draws,
    *,
    keep: bool,
) -> tuple[Weights, list[_Step]]:
    """Return phi_k and the k steps of SGD that lead there; `keep` their graphs."""
    moving, here, steps = learner.names(inner.scope), phi, []
    for rows, shares in minibatches(support, inner.batch_size, inner.steps, draws):
        step = _Step(learner.leaves(here), moving, support.inputs[rows], support.labels[rows], shares)
        found = step.gradient(learner, graph=keep)
        steps.append(replace(step, kept=found) if keep else step)
        downhill = dict(zip(moving, found, strict=True))
        with torch.no_grad():
            here = {
                name: leaf - inner.lr * downhill[name] if name in downhill else leaf
                for name, leaf in step.leaves.items()
            }
    return here, steps


def objection(training: Training) -> str:
    """Return what these settings need that outer gradients do not have, or nothing."""
    if training.normalisation == "local":
        return "sends a gradient, which moves no weights at home: normalisation shared or recompute"
    if training.first_order or (training.inner_optimizer == "sgd" and not training.proximal):
        return ""
    return "has inner steps of plain SGD, which are differentiated: inner-optimizer sgd and proximal 0"


def steps(training: Training) -> int:
    """Return each episode's inner steps and one outer gradient; a Hessian counts with its step."""
    return training.episodes * (training.inner_steps + 1)


maml = Algorithm(
    name="maml",
    paper="arXiv 1703.03400",
    local_update=local_update,
    identity={"inner-optimizer": "sgd", "proximal": 0.0, "clip-norm": LONGEST, "outer": ADAM},
    objection=objection,
    steps=steps,
    queries=True,
)
