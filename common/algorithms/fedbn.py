"""FedBN (Li et al. 2021, arXiv 2102.07623): FedAvg whose batch normalisation stays at the site.

At a site:          phi_tilde = k steps from (phi, its own normalisation) on the site's own data; its own
                    normalisation is kept there until the next round
The coordinator:    phi <- weighted mean over sites of phi_tilde, without any normalisation

A hospital that was never trained with begins with the initial normalisation (scale 1, shift 0). Statistics
are always those of the hospital's own images, estimated without labels before it adapts.
"""

from __future__ import annotations

from common.algorithms.algorithm import Algorithm
from common.algorithms.fedavg import fedavg
from common.algorithms.reptile import local_update

fedbn = Algorithm(
    name="fedbn",
    paper="arXiv 2102.07623",
    local_update=local_update,
    identity={**fedavg.identity, "normalisation": "local"},
)
