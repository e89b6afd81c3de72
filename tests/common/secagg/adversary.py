"""What a malicious coordinator does: whom to name dropped to whom, and what it opens with the shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from common.secagg import shamir
from common.secagg.masking import pair_mask, self_mask
from common.secagg.messages import Holders, Masked, Plan, UnmaskAnswer
from common.secagg.vector import MaskedSum


def spread(targets: Sequence[str], holders: Sequence[str], threshold: int, most: int) -> dict[str, list[str]]:
    """Return whom to name dropped to each holder, at most so many, so that each target is named t times."""
    named: dict[str, list[str]] = {holder: [] for holder in holders}
    for target in targets:
        willing = [holder for holder in holders if holder != target and len(named[holder]) < most]
        willing.sort(key=lambda holder: (len(named[holder]), holder <= target))
        assert len(willing) >= threshold
        for holder in willing[:threshold]:
            named[holder].append(target)
    return named


def open_one(holders: Holders, plan: Plan, masked: Masked, answers: Iterable[UnmaskAnswer]) -> np.ndarray:
    """Return a site's own delta, from its vector under `plan` and shares of its b and of all its peers' s."""
    victim, agreed = masked.site, plan.digest()
    own = plan.manifests[plan.cohort.index(victim)]
    given = list(answers)

    def secret(shares: Mapping[str, bytes]) -> bytes:
        chosen = sorted(shares)[: holders.threshold]
        return shamir.combine([shares[one] for one in chosen], [holders.point(one) for one in chosen])

    b = secret({answer.site: answer.seeds[victim] for answer in given})
    undo = [self_mask(b, plan.run, plan.slot, agreed, victim).opposite()]
    for peer in plan.cohort:
        if peer != victim:
            s = secret({answer.site: answer.keys[peer] for answer in given if peer in answer.keys})
            undo.append(pair_mask(s, peer, victim, own.s, plan.run, plan.slot, agreed))
    total = MaskedSum(plan.layout)
    total.add(masked.vector)
    return total.total(undo, 1).mean
