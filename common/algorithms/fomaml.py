"""FOMAML, first-order MAML (arXiv 1703.03400, section 5.2; arXiv 1803.02999, section 5).

At a site, for each episode:   phi_tilde = k inner steps from phi on the support
                               g = grad L_query(phi_tilde)
The site sends:                delta = -mean over episodes of g

which is MAML with every Hessian taken as 0. As nothing is differentiated through the inner loop, it may
take Adam's steps as well.
"""

from __future__ import annotations

from common.algorithms.algorithm import Algorithm
from common.algorithms.maml import local_update, maml, objection, steps

fomaml = Algorithm(
    name="fomaml",
    paper="arXiv 1703.03400",
    local_update=local_update,
    identity={**maml.identity, "first-order": True},
    objection=objection,
    steps=steps,
    queries=True,
)
