"""Prototypical Networks (Snell, Swersky and Zemel 2017, arXiv 1703.05175).

A class's prototype is the mean of its support's features, c_k = mean of f(x_i) over y_i = k, in which every
patient weighs the same, and

    p(y = k | x) = softmax over k of -|f(x) - c_k|^2
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from common.algorithms.algorithm import Algorithm
from common.algorithms.metric import IDENTITY, BySupport, Compare, Embedded, Episodic, classify, steps


def score(
    _compare: Compare, known: Embedded, asked: Float[Tensor, "case feature"]
) -> Float[Tensor, "case klass"]:
    """Return minus the squared Euclidean distance to each class's prototype."""
    members = known.by_class
    prototypes = (members.T @ known.features) / members.sum(0)[:, None]
    return -(asked[:, None] - prototypes).square().sum(2)


protonet = Algorithm(
    name="protonet",
    paper="arXiv 1703.05175",
    local_update=Episodic(classify(score)),
    adapt=BySupport(score),
    identity=IDENTITY,
    adapter=lambda features: nn.Identity(),
    steps=steps,
    queries=True,
)
