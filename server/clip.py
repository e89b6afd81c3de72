"""How long a site's delta may be: round after round it follows the length of the cohort's own.

Andrew et al. 2021 (NeurIPS, "Differentially Private Learning with Adaptive Clipping", arXiv 1905.03871):
every site says, masked, whether its delta was within the round's clip C, CLIP_MARGIN times over, before it
was clipped. With b the share of those who say so, C <- C exp(-rate (b - quantile)): C comes to CLIP_MARGIN
times the quantile of the deltas' lengths. Clipped to the quantile itself, half the cohort would lose part
of what it learned in every round, and short runs of few sites much of it. The first clip is what [training]
allows at most, which takes nothing from data and may be a hundred times too long; so the rate begins at 4
and falls as 4 / round to `clip-rate`: a factor of 7 in the first round at quantile 1/2, 20 within two, 130
within six.

Sites that lie about it, f of n, shift b by f / n: as long as that is less than the quantile and than 1 -
quantile, C stays CLIP_MARGIN times between the shortest and the longest of the honest deltas. At 1/2 that is
a minority, and the more of them there are the longer it takes.
"""

from __future__ import annotations

import math

from common.algorithms.algorithm import longest_delta
from common.sections import Training

BEGIN = 4.0
"""Rate of the first round."""
SHORTEST = 1e-9
"""Least clip, as a share of what [training] allows: a clip of 0 would leave nothing to learn from."""


def following(clip: float, training: Training, parameters: int, server_round: int, share: float) -> float:
    """Return the clip after `server_round`, of whose sites `share` were within `clip` (`within_clip`)."""
    most = longest_delta(training, parameters)
    if not training.clip_quantile:
        return most
    rate = max(training.clip_rate, BEGIN / server_round)
    longer = longest_delta(training, parameters, clip) * math.exp(-rate * (share - training.clip_quantile))
    return min(most, max(most * SHORTEST, longer))
