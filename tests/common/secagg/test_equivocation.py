"""A malicious coordinator that shows different sites different things, or too small a company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.identity import fingerprint
from common.secagg import aggregator, agreement, site
from common.secagg.identity import Identity
from common.secagg.masking import self_mask
from common.secagg.messages import (
    ADVERTISE,
    Advertisement,
    MaskRequest,
    Payload,
    Plan,
    UnmaskRequest,
)
from common.secagg.numbers import Numbers, Policy
from common.secagg.vector import MaskedSum
from tests.common.secagg.federation import (
    PAYLOAD,
    RUN,
    Federation,
    contribution,
    dealt_of,
    layout_for,
    refused,
    unchanged,
)

VICTIM, SIBLING, THIRD = "h000", "h001", "h002"


@pytest.fixture
def federation() -> Federation:
    """Five hospitals that trust each other's keys."""
    return Federation(5)


def test_weights_that_are_not_the_plans(federation: Federation) -> None:
    """A site hashes what it holds: other weights or another configuration than the plan's are not used."""
    layout, victim = layout_for(5), federation[VICTIM]
    requests = federation.requests(federation.holders(), layout)
    for held in (Payload.of(b"trap", b"the configuration"), Payload.of(b"the weights", b"trap")):
        unchanged(victim, "other-payload", victim.mask, requests[VICTIM], contribution(layout, 0), held)
    state, member = victim.state, victim.member
    refused("other-payload", site.review, state, member, requests[VICTIM], Payload.of(b"trap", b""))


@pytest.mark.parametrize("lie", ["nothing", "model", "configuration", "layout", "cohort"])
def test_equivocation_within_a_slot(federation: Federation, lie: str) -> None:
    """Shown another plan than the rest, the victim's masks do not cancel and nobody takes its signature.

    Even a coordinator that had stolen every seed b would see noise: with one plan for all ("nothing") the
    remaining sum is what was quantised, with any lie it is not.
    """
    layout = layout_for(5)
    requests = federation.requests(federation.holders(), layout)
    seeds = {name: dealt_of(federation[name].state).b for name in federation.names}
    plan = requests[VICTIM].plan
    shown = {
        "nothing": plan,
        "model": replace(plan, payload=Payload.of(b"trap", b"the configuration")),
        "configuration": replace(plan, payload=Payload.of(b"the weights", b"trap")),
        "layout": replace(plan, layout=replace(layout, clip_norm=1e-6)),
        "cohort": replace(plan, manifests=plan.manifests[:4]),
    }[lie]
    sealed = {peer: share for peer, share in requests[VICTIM].sealed.items() if peer in shown.cohort}
    requests[VICTIM] = MaskRequest(shown, sealed)
    quiet = replace(contribution(layout, 0), delta=np.zeros(layout.parameters, np.float32))
    masked = {
        name: federation[name].mask(request, quiet, request.plan.payload)
        for name, request in requests.items()
    }
    total = MaskedSum(layout)
    undo = []
    for name, request in requests.items():
        total.add(masked[name].vector)
        undo.append(self_mask(seeds[name], RUN, 1, request.plan.digest(), name).opposite())
    if lie == "nothing":
        assert not total.total(undo, 5).mean.any()
    else:
        refused("impossible-sum", total.total, undo, 5)
    signatures = {name: each.signature for name, each in masked.items()}
    for name in federation.names if lie != "nothing" else []:
        wrong = SIBLING if name == VICTIM else VICTIM
        everyone = {peer: signatures[peer] for peer in requests[name].plan.cohort}
        unchanged(
            federation[name],
            "untrusted",
            federation[name].unmask,
            UnmaskRequest(RUN, 1, everyone, ()),
            by=wrong,
        )


@pytest.mark.parametrize("lie", ["names", "threshold", "degree"])
def test_equivocation_on_the_holders(federation: Federation, lie: str) -> None:
    """Manifests made for other holders, another threshold or another graph do not mix."""
    honest = federation.holders()
    lies = {
        "names": federation.holders(1, federation.names[:4], Numbers(4, 4, 3)),
        "threshold": replace(honest, threshold=5),
        "degree": replace(honest, degree=5),
    }
    dealings = [federation[name].deal(lies[lie] if name == SIBLING else honest) for name in federation.names]
    refused("holders-differ", aggregator.check_dealing, federation.roster, honest, dealings[1], by=SIBLING)
    sealed = {
        each.manifest.site: each.sealed.get(VICTIM, b"") for each in dealings if each.manifest.site != VICTIM
    }
    plan = Plan(RUN, 1, PAYLOAD, layout_for(5), tuple(each.manifest for each in dealings))
    victim, request = federation[VICTIM], MaskRequest(plan, sealed)
    unchanged(victim, "holders-differ", victim.mask, request, contribution(plan.layout, 0), by=SIBLING)


def test_shrunken_and_spoilt_cohorts(federation: Federation) -> None:
    """Fewer than t, without the site itself, out of order, twice the same, or not among the holders."""
    layout, victim = layout_for(5), federation[VICTIM]
    requests = federation.requests(federation.holders(), layout)
    plan = requests[VICTIM].plan
    outsider = replace(plan.manifests[4], site="h999")
    for manifests in (
        plan.manifests[:3],
        plan.manifests[1:],
        plan.manifests[::-1],
        (*plan.manifests, plan.manifests[-1]),
        (*plan.manifests, outsider),
    ):
        lie = replace(requests[VICTIM], plan=replace(plan, manifests=manifests))
        unchanged(victim, "bad-cohort", victim.mask, lie, contribution(layout, 0))


def test_holder_sets_that_protect_too_little(federation: Federation) -> None:
    """Two sites, thresholds that allow two views or exceed n, a graph that falls apart: nothing is dealt."""
    victim, names = federation[VICTIM], federation.names
    for holders, reason in (
        (federation.holders(1, names[:2]), "too-few-honest"),
        (federation.holders(1, numbers=Numbers(5, 3, 4)), "split-views"),
        (federation.holders(1, numbers=Numbers(5, 6, 4)), "bad-threshold"),
        (federation.holders(1, numbers=Numbers(5, 1, 4)), "bad-threshold"),
        (federation.holders(1, numbers=Numbers(5, 4, 2)), "sparse-graph"),
    ):
        unchanged(victim, reason, victim.deal, holders)
    unchanged(victim, "not-holder", victim.deal, federation.holders(1, names[1:]))
    honest = federation.holders()
    backwards = replace(honest, advertisements=honest.advertisements[::-1])
    twice = replace(honest, advertisements=(honest.advertisements[0], *honest.advertisements))
    for holders in (backwards, twice):
        unchanged(victim, "malformed", victim.deal, holders)
    unchanged(victim, "wrong-run", victim.deal, replace(honest, run="run-0"))


def test_a_policy_that_became_stricter_counts(federation: Federation) -> None:
    """Confirmation or policy withdrawn after dealing is noticed before masking."""
    layout, victim = layout_for(5), federation[VICTIM]
    requests = federation.requests(federation.holders(), layout)
    victim.member = replace(victim.member, policy=Policy(min_cohort=4))
    unchanged(victim, "too-few-honest", victim.mask, requests[VICTIM], contribution(layout, 0))


def test_sybils() -> None:
    """Sites that the coordinator made up are unknown; once admitted they count as colluders."""
    federation = Federation(7, unconfirmed=("h005", "h006"))
    victim = federation[VICTIM]
    unchanged(victim, "split-views", victim.deal, federation.holders())
    unchanged(victim, "too-few-honest", victim.deal, federation.holders(1, [*federation.names[:4], "h006"]))
    genuine = federation.holders(1, federation.names[:5])
    eve = Identity.make()
    unsigned = Advertisement(RUN, "h007", 1, agreement.public_of(eve.secret))
    sybil = replace(unsigned, signature=eve.sign(ADVERTISE, *unsigned.signed()))
    lie = replace(genuine, advertisements=(*genuine.advertisements, sybil))
    unchanged(victim, "unknown-site", victim.deal, lie, by="h007")
    roster = victim.member.roster
    for name in ("h005", "h006"):
        roster = roster.confirm(name, fingerprint(roster.peers[name].public))
    victim.member = replace(victim.member, roster=roster)
    victim.deal(federation.holders())


def test_another_key_on_the_coordinators_word_changes_nothing(federation: Federation) -> None:
    """The pinned key goes on to count, and whoever has the other one is not believed."""
    victim, eve = federation[VICTIM], Identity.make()
    roster = victim.member.roster.admit(SIBLING, eve.public)
    assert roster.peers[SIBLING] == replace(federation.roster.peers[SIBLING], pending=eve.public)
    victim.member = replace(victim.member, roster=roster)
    honest = federation.holders()
    unsigned = replace(honest.advertisements[1], c=agreement.public_of(eve.secret))
    taken_over = replace(unsigned, signature=eve.sign(ADVERTISE, *unsigned.signed()))
    lie = replace(honest, advertisements=(honest.advertisements[0], taken_over, *honest.advertisements[2:]))
    unchanged(victim, "untrusted", victim.deal, lie, by=SIBLING)
    victim.deal(honest)
