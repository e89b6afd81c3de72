"""FedProx (Li et al. 2020, arXiv 1812.06127).

At a site:          minimise loss(w) + mu/2 * |w - phi|^2, so that sites do not drift far from phi
The coordinator:    as FedAvg

With mu = 0 it is FedAvg. `proximal` is mu.
"""

from __future__ import annotations

from common.algorithms.algorithm import Algorithm
from common.algorithms.fedavg import fedavg
from common.algorithms.reptile import local_update

fedprox = Algorithm(
    name="fedprox",
    paper="arXiv 1812.06127",
    local_update=local_update,
    identity={**fedavg.identity, "proximal": 0.1},
)
