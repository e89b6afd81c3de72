"""FedAvg (McMahan et al. 2017, arXiv 1602.05629).

At a site:          phi_tilde = k steps from phi on the site's own data
The coordinator:    phi <- weighted mean over sites of phi_tilde, weights in proportion to cases

which is Reptile with meta_lr = 1, no annealing and one episode that is the whole site; with uniform
weights the two are the same to the last bit.
"""

from __future__ import annotations

from common.algorithms.algorithm import Algorithm
from common.algorithms.reptile import local_update

ADOPT_THE_MEAN = {"optimizer": "sgd", "meta-lr": 1.0, "meta-lr-final": 1.0}
"""The coordinator's step that makes the mean of the sites' weights the next phi."""

fedavg = Algorithm(
    name="fedavg",
    paper="arXiv 1602.05629",
    local_update=local_update,
    identity={"weighting": "patients", "proximal": 0.0, "outer": ADOPT_THE_MEAN},
)
