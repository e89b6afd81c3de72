"""Siamese networks (Koch, Zemel and Salakhutdinov 2015, ICML deep learning workshop).

    p(x and x_i are of one class) = sigmoid(b - |w| . |f(x) - f(x_i)|)

is learned on all pairs of an episode's query and support by logistic loss, a query case's pairs of one class
and its pairs of two weighing the same; a case is of the class of the support case that is likeliest to be
its like. The weights w belong to no class, so they cross the wire with f. The paper lets them have either
sign; but then most features of a few sites come to speak for likeness where they differ, and at a new site
that is wrong.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from common.algorithms.algorithm import Algorithm
from common.algorithms.metric import IDENTITY, BySupport, Compare, Embedded, Episodic, one_hot, steps
from common.learner import Learner


class AgainstLikeness(nn.Linear):
    """The pairs' logistic regression b - |w| . apart: no difference speaks for likeness."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 1)

    def forward(self, apart: Float[Tensor, "pair feature"]) -> Float[Tensor, "pair 1"]:
        """Return the logit that a pair is of one class."""
        return nn.functional.linear(apart, -self.weight.abs(), self.bias)


def pairs(
    compare: Compare, known: Float[Tensor, "shot feature"], asked: Float[Tensor, "case feature"]
) -> Float[Tensor, "case shot"]:
    """Return the logit that each query case and each support case are of one class."""
    apart = (asked[:, None] - known).abs().flatten(0, 1)
    return compare(apart).view(len(asked), len(known))


def score(
    compare: Compare, known: Embedded, asked: Float[Tensor, "case feature"]
) -> Float[Tensor, "case klass"]:
    """Return each class's largest logit over its support cases."""
    elsewhere = one_hot(known.labels).T == 0
    return pairs(compare, known.features, asked)[:, None].masked_fill(elsewhere, -torch.inf).amax(2)


def loss(_learner: Learner, compare: Compare, known: Embedded, asked: Embedded) -> Float[Tensor, ""]:
    """Return the logistic loss of all pairs, each query patient's like and unlike ones weighing the same."""
    logits = pairs(compare, known.features, asked.features)
    like = (asked.labels[:, None] == known.labels).to(logits.dtype)
    present = known.by_class.sum(1)
    same, other = like * present, (1 - like) * present
    weight = same / same.sum(1, keepdim=True) + other / other.sum(1, keepdim=True)
    each = binary_cross_entropy_with_logits(logits, like, weight / 2, reduction="none").sum(1)
    return each.mean() if asked.shares is None else each @ asked.shares.to(each)


siamese = Algorithm(
    name="siamese",
    paper="Koch, Zemel and Salakhutdinov 2015",
    local_update=Episodic(loss),
    adapt=BySupport(score),
    identity=IDENTITY,
    adapter=AgainstLikeness,
    steps=steps,
    queries=True,
)
