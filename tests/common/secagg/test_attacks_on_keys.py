"""A malicious coordinator with forged, swapped, stale and replayed keys and shares."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.secagg import aggregator, agreement, site
from common.secagg.identity import Identity
from common.secagg.messages import (
    ADVERTISE,
    MANIFEST,
    Manifest,
    Plan,
)
from tests.common.secagg.federation import (
    PAYLOAD,
    Federation,
    check_total,
    contribution,
    layout_for,
    refused,
    unchanged,
    with_epoch,
)

VICTIM, SIBLING, THIRD = "h000", "h001", "h002"


@pytest.fixture
def federation() -> Federation:
    """Five hospitals that trust each other's keys."""
    return Federation(5)


def test_forged_and_swapped_sealing_keys(federation: Federation) -> None:
    """The coordinator's own key, a sibling's under another name, one of another run: none is sealed to."""
    holders, eve = federation.holders(), Identity.make()
    first, second, *rest = holders.advertisements
    unsigned = replace(second, c=agreement.public_of(eve.secret))
    forged = replace(unsigned, signature=eve.sign(ADVERTISE, *unsigned.signed()))
    kept = replace(second, c=agreement.public_of(eve.secret))
    swapped = replace(rest[0], site=SIBLING)
    for wrong in (forged, kept, swapped):
        lie = replace(holders, advertisements=(first, wrong, *rest))
        unchanged(federation[VICTIM], "untrusted", federation[VICTIM].deal, lie, by=SIBLING)
    elsewhere = site.advertise(replace(federation[SIBLING].state, run="run-0"), federation[SIBLING].member)
    lie = replace(holders, advertisements=(first, elsewhere, *rest))
    unchanged(federation[VICTIM], "wrong-run", federation[VICTIM].deal, lie, by=SIBLING)
    federation[VICTIM].deal(holders)


def test_stale_sealing_keys(federation: Federation) -> None:
    """After a site changed its key nobody takes the old one, nor two keys of one epoch."""
    old = federation.holders()
    with_epoch(federation[SIBLING], 2)
    new = federation.holders(2)
    federation[VICTIM].deal(new)
    stale = replace(new, slot=3, advertisements=old.advertisements)
    unchanged(federation[VICTIM], "stale-key", federation[VICTIM].deal, stale, by=SIBLING)
    unchanged(federation[SIBLING], "not-holder", federation[SIBLING].deal, stale)
    double = site.advertise(
        replace(federation[SIBLING].state, c=bytes(range(32))), federation[SIBLING].member
    )
    lie = replace(new, slot=3, advertisements=(new.advertisements[0], double, *new.advertisements[2:]))
    unchanged(federation[VICTIM], "stale-key", federation[VICTIM].deal, lie, by=SIBLING)
    refused("stale-key", site.rejoin, federation[SIBLING].state, 2, by=SIBLING)


def test_a_stale_key_shown_to_some_dealers_only(federation: Federation) -> None:
    """Dealers who sealed to a holder's old key and those who sealed to its new one do not mask together."""
    old = federation.holders()
    with_epoch(federation[THIRD], 2)
    new = federation.holders()
    dealings = [federation[name].deal(old if name == VICTIM else new) for name in federation.names]
    requests = aggregator.mask_requests(new, dealings, PAYLOAD, layout_for(5))
    for name in federation.names:
        at_fault = SIBLING if name == VICTIM else VICTIM
        call = federation[name].mask
        unchanged(
            federation[name],
            "holders-differ",
            call,
            requests[name],
            contribution(layout_for(5), 0),
            by=at_fault,
        )


def test_forged_and_replayed_manifests(federation: Federation) -> None:
    """A mask key of the coordinator's own, of an earlier slot, of another site: the victim does not mask."""
    layout = layout_for(5)
    earlier = federation.requests(federation.holders(1), layout)
    holders = federation.holders(2)
    requests = federation.requests(holders, layout)
    plan, victim, eve = requests[VICTIM].plan, federation[VICTIM], Identity.make()
    genuine = plan.manifests[1]
    unsigned = replace(genuine, s=agreement.public_of(eve.secret))
    for wrong, reason in (
        (replace(unsigned, signature=eve.sign(MANIFEST, *unsigned.signed())), "untrusted"),
        (unsigned, "untrusted"),
        (replace(genuine, commitment=bytes(32)), "untrusted"),
        (replace(plan.manifests[2], site=SIBLING), "untrusted"),
        (earlier[VICTIM].plan.manifests[1], "wrong-run"),
        (replace(genuine, run="run-0"), "wrong-run"),
    ):
        lie = replace(requests[VICTIM], plan=_with_manifest(plan, 1, wrong))
        unchanged(victim, reason, victim.mask, lie, contribution(layout, 0), by=SIBLING)
    own = replace(requests[VICTIM], plan=_with_manifest(plan, 0, earlier[VICTIM].plan.manifests[0]))
    unchanged(victim, "wrong-run", victim.mask, own, contribution(layout, 0), by=VICTIM)
    victim.mask(requests[VICTIM], contribution(layout, 0))


def test_a_manifest_from_before_a_rollback(federation: Federation) -> None:
    """A site that was rolled back and dealt anew does not mask under the mask key that it forgot."""
    layout, victim, holders = layout_for(5), federation[VICTIM], federation.holders()
    before = victim.stored
    forgotten = victim.deal(holders).manifest
    victim.stored = before
    request = federation.requests(holders, layout)[VICTIM]
    lie = replace(request, plan=_with_manifest(request.plan, 0, forgotten))
    unchanged(victim, "holders-differ", victim.mask, lie, contribution(layout, 0), by=VICTIM)


def _with_manifest(plan: Plan, place: int, manifest: Manifest) -> Plan:
    manifests = list(plan.manifests)
    manifests[place] = manifest
    return replace(plan, manifests=tuple(manifests))


def test_altered_and_missing_shares(federation: Federation) -> None:
    """A flipped bit, another's share, an earlier one, none, one too many: refused, the rest goes on."""
    layout, victim = layout_for(5), federation[VICTIM]
    earlier = federation.requests(federation.holders(1), layout)
    holders = federation.holders(2)
    requests = federation.requests(holders, layout)
    good = requests[VICTIM].sealed[SIBLING]
    for wrong in (
        good[:-1] + bytes([good[-1] ^ 1]),
        good[:20],
        b"",
        requests[THIRD].sealed[SIBLING],
        earlier[VICTIM].sealed[SIBLING],
    ):
        lie = replace(requests[VICTIM], sealed=requests[VICTIM].sealed | {SIBLING: wrong})
        unchanged(victim, "bad-share", victim.mask, lie, contribution(layout, 0), by=SIBLING)
    for sealed in ({}, requests[VICTIM].sealed | {VICTIM: good}):
        lie = replace(requests[VICTIM], sealed=sealed)
        unchanged(victim, "shares-missing", victim.mask, lie, contribution(layout, 0))
    slot, told = federation.slot(holders, requests), []
    for seed, name in enumerate(federation.names[1:]):
        told.append(contribution(layout, seed))
        slot.add(federation[name].mask(requests[name], told[-1]))
    check_total(layout, told, federation.finish(slot, federation.names[1:]))


def test_a_layout_for_fewer_sites_would_overflow(federation: Federation) -> None:
    """Sums that might wrap are not masked for."""
    layout, victim = layout_for(4), federation[VICTIM]
    requests = federation.requests(federation.holders(), layout)
    unchanged(victim, "overflow", victim.mask, requests[VICTIM], contribution(layout, 0))
