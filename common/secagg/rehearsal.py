"""A rehearsal: a slot in a run of its own, on a vector that everybody can compute, opened site by site.

A masked sum that honest sites cannot make says that one lies or is broken, and not which. In a rehearsal
every site deals and masks as ever, but the vector comes from the plan's digest instead of data, and the site
gives its secrets of the slot away with it. So the coordinator knows what the site had to send, and compares.

It cannot be taken for a real slot, nor a real one for it: its run's id begins with `messages.REHEARSAL`, its
payload is `messages.PUBLIC`, which no weights have, both are in D, and a site takes one only with the other.
Keys, secrets and state belong to a run, so what is given away is of no use in any other.
"""

from __future__ import annotations

import hmac
import math
from dataclasses import dataclass, field, replace

import numpy as np

from common.secagg import agreement, site, vector
from common.secagg.dealing import SECRET
from common.secagg.encoding import digest
from common.secagg.identity import Roster
from common.secagg.masking import PIECE, Keystream
from common.secagg.messages import (
    MASKED,
    PUBLIC,
    Holders,
    Masked,
    MaskRequest,
    Plan,
    commitment_to,
    rehearses,
)
from common.secagg.quantise import Contribution
from common.secagg.reasons import Reason, refusal
from common.secagg.state import SiteRun


@dataclass(frozen=True)
class Rehearsed:
    """What comes up: the masked vector, and the secrets with which it was masked."""

    masked: Masked
    s: bytes = field(repr=False)
    b: bytes = field(repr=False)


def rehearse(state: SiteRun, member: site.Member, request: MaskRequest) -> tuple[SiteRun, Rehearsed]:
    """Mask the public vector and give this slot's secrets away; refused in any run but a rehearsal's."""
    if not rehearses(state.run):
        raise refusal(Reason.NOT_A_REHEARSAL)
    if state.dealt is None:
        raise refusal(Reason.NOT_DEALT)
    contribution = public_contribution(request.plan, state.site)
    after, masked = site.mask(state, member, request, PUBLIC, contribution)
    return replace(after, open=None), Rehearsed(masked, state.dealt.s, state.dealt.b)


def public_contribution(plan: Plan, name: str) -> Contribution:
    """Return what a site masks in a rehearsal: no longer than half the clip, so that nothing is clipped."""
    layout, agreed = plan.layout, plan.digest()
    stream, numbers = Keystream(digest("public vector", agreed)), np.empty(layout.parameters, "<u2")
    for start in range(0, layout.parameters, PIECE):
        stream.read_into(numbers[start : start + PIECE])
    reach = min(layout.coordinate_range, layout.clip_norm / math.sqrt(layout.parameters)) / 2
    return Contribution(
        delta=((numbers / 2.0**15 - 1) * reach).astype(np.float32),
        weight=1,
        metrics={metric.name: (metric.low + metric.high) / 2 for metric in layout.metrics},
        rounding_key=digest("public rounding", agreed, name),
    )


def check(roster: Roster, holders: Holders, plan: Plan, rehearsed: Rehearsed) -> None:
    """Raise SecAggError, which names the site, unless it sent what everybody knows it had to send."""
    masked, name = rehearsed.masked, rehearsed.masked.site
    roster.verify(name, masked.signature, MASKED, plan.run, plan.slot, plan.digest())
    manifest = plan.manifests[plan.cohort.index(name)]
    s, b = rehearsed.s, rehearsed.b
    own = len(s) == len(b) == SECRET and hmac.compare_digest(agreement.public_of(s), manifest.s)
    if not (own and hmac.compare_digest(commitment_to(b, plan.run, plan.slot, name), manifest.commitment)):
        raise refusal(Reason.BAD_REHEARSAL, name)
    masks = site.masks(s, b, holders.degree, plan, name)
    if not hmac.compare_digest(
        vector.mask(plan.layout, public_contribution(plan, name), masks), masked.vector
    ):
        raise refusal(Reason.BAD_REHEARSAL, name)
