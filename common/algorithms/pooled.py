"""Pooled: ordinary training on all meta-training hospitals' data in one place; the non-private upper bound.

It is FedAvg over a single site that holds everything, so it runs through the same code.
"""

from __future__ import annotations

from common.algorithms.algorithm import Algorithm
from common.algorithms.fedavg import ADOPT_THE_MEAN
from common.algorithms.reptile import local_update

pooled = Algorithm(
    name="pooled",
    paper="baseline",
    local_update=local_update,
    identity={"proximal": 0.0, "clip-quantile": 0.0, "outer": ADOPT_THE_MEAN},
    pooled=True,
)
