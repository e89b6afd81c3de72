"""ANIL, almost no inner loop (Raghu, Raghu, Bengio and Vinyals 2020, arXiv 1909.09157): adapter-only MAML.

F(x) = A(B(x)). At a site, for each episode, with the features B(x) of support and query made once:
                               a_0 = phi_A,  a_{i+1} = a_i - inner_lr * grad_a L_support(a_i, phi_B)
                               g = d L_query(a_k, phi_B) / d phi, backbone and adapter
The site sends:                delta = -mean over episodes of g

`first-order` takes the gradients in the inner loop as constants, as FOMAML does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common import weights
from common.algorithms.algorithm import Algorithm, Update
from common.algorithms.maml import maml, steps
from common.cases import Episode
from common.inner_loop import minibatches
from common.learner import Learner, on_cpu
from common.optimizer import Memory
from common.sections import Training
from common.seeds import Draws
from common.weights import Weights


def local_update(
    learner: Learner,
    phi: Weights,
    episodes: Sequence[Episode],
    training: Training,
    draws: Draws,
    _memory: Memory,
) -> Update:
    """Return minus the mean over episodes of g, and the query losses."""
    gradients, losses = zip(
        *(outer_gradient(learner, phi, episode, training, draws) for episode in episodes), strict=True
    )
    return Update(weights.scale(weights.mean(gradients), -1.0), sum(losses), len(episodes))


def outer_gradient(
    learner: Learner, phi: Weights, episode: Episode, training: Training, draws: Draws
) -> tuple[Weights, float]:
    """Return the gradient by phi of an episode's query loss after its inner loop, and that loss."""
    leaves, support, query = learner.leaves(phi), episode.support, episode.query
    known, asked = learner.embed(leaves, support.inputs), learner.embed(leaves, query.inputs)
    adapter = {name: leaves[name] for name in learner.names("adapter")}
    task = learner.task
    for rows, shares in minibatches(support, training.batch_size, training.inner_steps, draws):
        loss = task.loss(learner.adapter(adapter, known[rows]), support.labels[rows], shares)
        gradients = torch.autograd.grad(
            loss, list(adapter.values()), create_graph=not training.first_order, retain_graph=True
        )
        adapter = {
            name: value - training.inner_lr * gradient
            for (name, value), gradient in zip(adapter.items(), gradients, strict=True)
        }
    outer = task.loss(learner.adapter(adapter, asked), query.labels, query.shares)
    found = torch.autograd.grad(outer, list(leaves.values()))
    return on_cpu(dict(zip(leaves, found, strict=True))), float(outer.detach())


def objection(training: Training) -> str:
    """Return what second order has no answer to either: here every step is plain SGD."""
    return maml.objection(training.model_copy(update={"first_order": False}))


anil = Algorithm(
    name="anil",
    paper="arXiv 1909.09157",
    local_update=local_update,
    identity={**maml.identity, "inner-scope": "adapter"},
    objection=objection,
    steps=steps,
    queries=True,
)
