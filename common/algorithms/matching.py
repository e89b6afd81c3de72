"""Matching Networks (Vinyals et al. 2016, arXiv 1606.04080), with cosine attention.

    a(x, x_i) = softmax over i of cos(f(x), f(x_i)) / temperature
    p(y = k | x) = sum of a(x, x_i) over y_i = k

The paper has temperature 1, which bounds how sure an answer can be (with five classes and one case each,
e / (e + 4/e) = 0.65 at most) and learns slowly; ours is 0.1. `matching-fce` is the same with full-context
embeddings, whose weights belong to no class and cross the wire too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from common.algorithms.algorithm import Algorithm
from common.algorithms.metric import (
    IDENTITY,
    BySupport,
    Compare,
    Embedded,
    Episodic,
    classify,
    one_hot,
    steps,
)
from common.models.full_context import FullContext

TEMPERATURE = 0.1


def score(
    _compare: Compare, known: Embedded, asked: Float[Tensor, "case feature"]
) -> Float[Tensor, "case klass"]:
    """Return the logarithm of each class's share of the attention, in which every patient weighs the same."""
    nearness = normalize(asked, dim=1) @ normalize(known.features, dim=1).T / TEMPERATURE
    attention = (nearness + known.by_class.sum(1).log()).log_softmax(1)
    elsewhere = one_hot(known.labels).T == 0
    return attention[:, None].masked_fill(elsewhere, -torch.inf).logsumexp(2)


def score_in_context(
    compare: Compare, known: Embedded, asked: Float[Tensor, "case feature"]
) -> Float[Tensor, "case klass"]:
    """Return the same of full-context embeddings."""
    both, shot = compare(known.features, asked), len(known.labels)
    return score(compare, replace(known, features=both[:shot]), both[shot:])


matching = Algorithm(
    name="matching",
    paper="arXiv 1606.04080",
    local_update=Episodic(classify(score)),
    adapt=BySupport(score),
    identity=IDENTITY,
    adapter=lambda features: nn.Identity(),
    steps=steps,
    queries=True,
)

matching_fce = replace(
    matching,
    name="matching-fce",
    local_update=Episodic(classify(score_in_context)),
    adapt=BySupport(score_in_context),
    adapter=FullContext,
)
