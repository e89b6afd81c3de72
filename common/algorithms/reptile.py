"""Reptile (Nichol, Achiam and Schulman 2018, arXiv 1803.02999).

At a site, for each episode tau:     phi_tilde = k inner steps from phi on tau
The site sends:                      delta = mean over tau of (phi_tilde - phi)
The coordinator:                     phi <- phi + meta_lr * mean over sites of delta,
                                     meta_lr annealed linearly (section 6 and the published code)
"""

from __future__ import annotations

from collections.abc import Sequence

from common import weights
from common.algorithms.algorithm import Algorithm, Update, inner_settings
from common.cases import Episode
from common.inner_loop import inner_loop
from common.learner import Learner
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
    memory: Memory,
) -> Update:
    """Return the mean over episodes of phi_tilde - phi."""
    settings = inner_settings(training)
    adapted, losses = zip(
        *(inner_loop(learner, phi, episode.support, settings, draws, memory) for episode in episodes),
        strict=True,
    )
    delta = weights.subtract(weights.mean(adapted), phi)
    return Update(delta, sum(losses), len(episodes))


reptile = Algorithm(
    name="reptile",
    paper="arXiv 1803.02999",
    local_update=local_update,
    identity={"proximal": 0.0, "outer": {"meta-lr-final": 0.0}},
)
