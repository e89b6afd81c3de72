"""A malicious coordinator whose hospitals hold different keys for one of them, or get others on the way.

It shows the victim one plan and everybody else another, on which it forges the victim's signature, so that
the others take the victim for a survivor of their plan and would give shares of its seed b; and it spreads
the names of the dropped so that enough shares of s of the victim's peers would come out as well. Both opened
the victim's update when sites verified by the roster of the moment, and manifests left identity keys out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.secagg import aggregator, site
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.messages import ADVERTISE, MANIFEST, MASKED, MaskRequest
from common.secagg.numbers import Numbers, Policy
from common.secagg.quantise import clip_factor
from common.secagg.state import save
from common.secagg.terms import Terms
from tests.common.secagg.adversary import open_one, spread
from tests.common.secagg.federation import (
    PAYLOAD,
    RUN,
    Federation,
    Hospital,
    contribution,
    layout_for,
    refused,
    unchanged,
    unmask_request,
)

VICTIM = "h000"


def swap(hospital: Hospital, public: bytes) -> None:
    """Put another, unconfirmed key in place of the victim's at one hospital."""
    peers = {**hospital.member.roster.peers, VICTIM: Peer(public)}
    hospital.member = replace(hospital.member, roster=Roster(peers))


def as_if_the_key_were_not_frozen(hospital: Hospital, public: bytes) -> Hospital:
    """Return a copy of a hospital that verifies the open slot's signatures of the victim by another key."""
    state = hospital.state
    assert state.open is not None
    terms = state.open.terms
    terms = replace(terms, keys={**terms.keys, VICTIM: public})
    peers = {**hospital.member.roster.peers, VICTIM: Peer(public, confirmed=True)}
    stored = save(replace(state, open=replace(state.open, terms=terms)))
    return Hospital(replace(hospital.member, roster=Roster(peers)), stored)


def shown_less(request: MaskRequest, cohort: int) -> MaskRequest:
    """Return the request with a smaller cohort, the first so many."""
    plan = replace(request.plan, manifests=request.plan.manifests[:cohort])
    sealed = {peer: share for peer, share in request.sealed.items() if peer in plan.cohort}
    return MaskRequest(plan, sealed)


@pytest.mark.parametrize(("min_cohort", "reason"), [(3, "too-few-honest"), (2, "untrusted")])
def test_a_key_swapped_between_masking_and_unmasking(min_cohort: int, reason: str) -> None:
    """Thirteen that confirmed each other, t = 8: the victim masks with eight, the twelve with all.

    Who has another key now than when it dealt counts as a colluder, 2 now: ceil(11 * 1 / 6) = 2 honest. Where
    that is enough, the forged signature still is not by the key of then.
    """
    federation = Federation(13, Policy(min_cohort=min_cohort, low_threshold=True))
    forged, layout = Identity.make(), layout_for(13)
    holders = federation.holders(numbers=Numbers(13, 8, 12))
    requests = federation.requests(holders, layout)
    everyone, others = requests[VICTIM].plan, federation.names[1:]
    less, told = shown_less(requests[VICTIM], 8), contribution(layout, 0)
    masked = federation[VICTIM].mask(less, told)
    signatures = {
        name: federation[name].mask(requests[name], contribution(layout, 1)).signature for name in others
    }
    signatures[VICTIM] = forged.sign(MASKED, RUN, 1, everyone.digest())
    named, answers = spread(everyone.cohort[1:8], others, 8, 5), []
    for name in others:
        asked = unmask_request(signatures, tuple(sorted(named[name])))
        answers.append(as_if_the_key_were_not_frozen(federation[name], forged.public).unmask(asked))
        swap(federation[name], forged.public)
        unchanged(federation[name], reason, federation[name].unmask, asked)
    opened = open_one(holders, less.plan, masked, answers)
    clipped = np.clip(told.delta * clip_factor(told.delta, layout.clip_norm), -0.5, 0.5)
    assert np.abs(opened - clipped).max() <= layout.step  # so much hangs on it


def test_a_wrong_key_from_the_start() -> None:
    """Sixteen, t = 10: fifteen hold a wrong, unconfirmed key for the victim, which has confirmed them all.

    Each site finds the numbers good by its own roster, and deals; but no manifest is bound to what another
    roster says, so that nobody masks.
    """
    federation = Federation(16, Policy(low_threshold=True))
    forged, layout, others = Identity.make(), layout_for(16), federation.names[1:]
    for name in others:
        swap(federation[name], forged.public)
    advertisements = [site.advertise(each.state, each.member) for each in federation.hospitals.values()]
    holders = aggregator.name_holders(RUN, 1, advertisements, Numbers(16, 10, 15))
    first, *rest = advertisements
    again = replace(first, signature=forged.sign(ADVERTISE, *first.signed()))
    shown = replace(holders, advertisements=(again, *rest))
    dealings = [federation[VICTIM].deal(holders), *(federation[name].deal(shown) for name in others)]
    requests = aggregator.mask_requests(holders, dealings, PAYLOAD, layout)
    victim = federation[VICTIM]
    lie = shown_less(requests[VICTIM], 10)
    unchanged(victim, "holders-differ", victim.mask, lie, contribution(layout, 0), by=others[0])
    plan = requests[VICTIM].plan
    resigned = replace(plan.manifests[0], signature=forged.sign(MANIFEST, *plan.manifests[0].signed()))
    plan = replace(plan, manifests=(resigned, *plan.manifests[1:]))
    for name in others:
        lie = replace(requests[name], plan=plan)
        unchanged(
            federation[name], "holders-differ", federation[name].mask, lie, contribution(layout, 0), by=VICTIM
        )


def test_a_key_swapped_between_dealing_and_masking() -> None:
    """A manifest is verified by the key of when the slot was dealt for, on whatever word that has changed."""
    federation, layout = Federation(7, Policy(min_cohort=1)), layout_for(7)
    forged, requests = Identity.make(), federation.requests(federation.holders(), layout_for(7))
    plan = requests[VICTIM].plan
    resigned = replace(plan.manifests[0], signature=forged.sign(MANIFEST, *plan.manifests[0].signed()))
    lie = replace(plan, manifests=(resigned, *plan.manifests[1:]))
    one = federation.names[1]
    swap(federation[one], forged.public)
    request = replace(requests[one], plan=lie)
    unchanged(federation[one], "untrusted", federation[one].mask, request, contribution(layout, 0), by=VICTIM)
    federation[one].mask(requests[one], contribution(layout, 0))


def test_the_manifest_is_bound_to_every_holders_key() -> None:
    """A digest changes with any one of the keys, and with whose it is."""
    federation = Federation(5)
    holders = federation.holders()
    keys = federation.roster.keys(holders.sites)
    others = [{**keys, name: Identity.make().public} for name in holders.sites]
    turned = dict(zip(holders.sites, reversed(keys.values()), strict=True))
    digests = {holders.digest(each) for each in (keys, *others, turned)}
    assert len(digests) == 7


@pytest.mark.parametrize("step", ["deal", "review", "mask", "unmask", "unmask again"])
@pytest.mark.parametrize("change", ["policy", "roster"])
def test_every_step_is_judged_by_the_stricter_of_then_and_now(step: str, change: str) -> None:
    """Seven, t = 5: 3 honest at least. A site that now asks 4, or trusts one less, goes on with nothing."""
    federation, layout = Federation(7), layout_for(7)
    holders = federation.holders()
    requests = federation.requests(holders, layout)
    one = federation[VICTIM]
    signatures = {}
    if step != "deal":
        for name in federation.names[1:]:
            signatures[name] = federation[name].mask(requests[name], contribution(layout, 0)).signature
    if step in ("review", "unmask", "unmask again"):
        signatures[VICTIM] = one.mask(requests[VICTIM], contribution(layout, 0)).signature
    asked = unmask_request(signatures, ())
    if step == "unmask again":
        one.unmask(asked)
    if change == "policy":
        one.member = replace(one.member, policy=Policy(min_cohort=4))
    else:
        peers = one.member.roster.peers
        other = federation.names[1]
        less = {**peers, other: replace(peers[other], confirmed=False)}
        one.member = replace(one.member, roster=Roster(less))
    call = {
        "deal": lambda: one.deal(holders),
        "mask": lambda: one.mask(requests[VICTIM], contribution(layout, 0)),
        "review": lambda: site.review(one.state, one.member, requests[VICTIM], PAYLOAD),
    }.get(step, lambda: one.unmask(asked))
    unchanged(one, "too-few-honest", call)


def test_what_was_demanded_then_holds_though_less_is_demanded_now() -> None:
    """A site that trusted less when it dealt, or asked more, does not forget it while the slot is open."""
    federation = Federation(7, unconfirmed=("h001",))
    holders = federation.holders(numbers=Numbers(7, 6, 6))  # ceil(5 * 3 / 4) = 4 of 3
    terms = Terms.of(VICTIM, federation.roster, Policy(colluders=1), holders)
    assert (terms.suspects, terms.min_cohort, terms.colluders) == (("h001",), 3, 1)
    trusting = Roster({name: replace(peer, confirmed=True) for name, peer in federation.roster.peers.items()})
    now = terms.judged(trusting, Policy(min_cohort=1, colluders=0))
    assert now == terms
    more = terms.judged(trusting, Policy(min_cohort=4))
    assert more.min_cohort == 4
    refused("too-few-honest", more.judged, trusting, Policy(min_cohort=5, colluders=0))
    less = Roster({**trusting.peers, "h002": Peer(Identity.make().public, confirmed=True)})
    assert terms.judged(less, Policy()).suspects == ("h001", "h002")  # ceil(4 * 2 / 3) = 3
    refused("too-few-honest", more.judged, less, Policy())


def test_a_threshold_below_the_default_needs_the_sites_word() -> None:
    """Thirteen at t = 8 keep every inequality and are refused all the same; the default and above are not."""
    low, usual = Numbers(13, 8, 12), Numbers(13, 9, 12)
    refused("low-threshold", Policy().check, low, 0)
    Policy(low_threshold=True).check(low, 0)
    for numbers in (usual, Numbers(13, 13, 12)):
        Policy().check(numbers, 0)


def test_whom_a_site_suspected_when_it_unmasked_it_suspects_when_asked_again() -> None:
    """Seven, t = 6: 5 honest at least; with one suspect at unmasking 4, also once it is trusted again."""
    federation, layout = Federation(7), layout_for(7)
    requests = federation.requests(federation.holders(numbers=Numbers(7, 6, 6)), layout)
    signatures = {
        name: federation[name].mask(request, contribution(layout, 0)).signature
        for name, request in requests.items()
    }
    one, asked = federation[VICTIM], unmask_request(signatures, ())
    peers = one.member.roster.peers
    less = Roster({**peers, "h001": replace(peers["h001"], confirmed=False)})
    one.member = replace(one.member, roster=less)
    answer = one.unmask(asked)
    one.member = replace(one.member, roster=Roster(peers), policy=Policy(min_cohort=4))
    assert one.unmask(asked) == answer
    one.member = replace(one.member, policy=Policy(min_cohort=5))
    unchanged(one, "too-few-honest", one.unmask, asked)
