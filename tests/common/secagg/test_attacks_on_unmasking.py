"""A malicious coordinator that lies about survivors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.secagg import aggregator, agreement, shamir
from common.secagg.encoding import load
from common.secagg.identity import Identity
from common.secagg.layout import Layout
from common.secagg.masking import Mask, pair_mask, self_mask
from common.secagg.messages import (
    MASKED,
    Holders,
    MaskRequest,
    UnmaskAnswer,
    UnmaskRequest,
)
from common.secagg.numbers import Numbers
from common.secagg.state import SiteRun
from common.secagg.vector import MaskedSum
from tests.common.secagg.federation import (
    RUN,
    Federation,
    Hospital,
    check_total,
    contribution,
    dealt_of,
    layout_for,
    masked_slot,
    refused,
    unchanged,
    unmask_request,
)

VICTIM, SIBLING, THIRD = "h000", "h001", "h002"


@pytest.fixture
def federation() -> Federation:
    """Five hospitals that trust each other's keys."""
    return Federation(5)


def test_lists_that_do_not_add_up(federation: Federation) -> None:
    """Overlapping, incomplete, foreign, doubled, without the site itself, too few, or not proved."""
    slot, masked, _ = masked_slot(federation, layout_for(5))
    victim, names = federation[VICTIM], federation.names
    signed = {name: each.signature for name, each in masked.items()}
    eve = Identity.make()
    for survivors, dropped, reason in (
        (names, (THIRD,), "bad-lists"),
        (names[:4], (), "bad-lists"),
        ([*names, "h999"], (), "bad-lists"),
        (names[:4], (names[4], names[4]), "bad-lists"),
        (names[:4], (names[4], "h999"), "bad-lists"),
        (names[1:], (VICTIM,), "bad-lists"),
        (names[:3], (names[3], names[4]), "too-few-survivors"),
    ):
        proofs = {name: signed.get(name, bytes(64)) for name in survivors}
        unchanged(victim, reason, victim.unmask, UnmaskRequest(RUN, 1, proofs, dropped))
    for proof in (bytes(64), b"", signed[THIRD], eve.sign(MASKED, RUN, 1, slot.plan.digest())):
        lie = UnmaskRequest(RUN, 1, signed | {SIBLING: proof}, ())
        unchanged(victim, "untrusted", victim.unmask, lie, by=SIBLING)
    unchanged(victim, "slot-closed", victim.unmask, unmask_request(signed, (), slot=2))
    unchanged(victim, "wrong-run", victim.unmask, replace(unmask_request(signed, ()), run="run-0"))
    victim.unmask(unmask_request(signed, ()))


def test_only_who_masked_answers(federation: Federation) -> None:
    """A holder outside the cohort gives nothing, nor does a site whose slot was followed by another."""
    layout = layout_for(5)
    holders = federation.holders()
    requests = federation.requests(holders, layout, federation.names[:4])
    federation[federation.names[4]].deal(holders)
    masked = {
        name: federation[name].mask(request, contribution(layout, 0)) for name, request in requests.items()
    }
    request = unmask_request({name: each.signature for name, each in masked.items()}, ())
    outsider = federation[federation.names[4]]
    unchanged(outsider, "slot-closed", outsider.unmask, request)
    later = federation.requests(federation.holders(2), layout)
    federation[VICTIM].mask(later[VICTIM], contribution(layout, 0))
    unchanged(federation[VICTIM], "slot-closed", federation[VICTIM].unmask, request)
    federation[SIBLING].unmask(request)


def test_both_kinds_of_shares_across_a_restart(federation: Federation) -> None:
    """A site restarted between two requests still knows its answer, and no longer holds anything else."""
    _, masked, _ = masked_slot(federation, layout_for(5))
    signatures = {name: each.signature for name, each in masked.items()}
    victim = federation[VICTIM]
    answer = victim.unmask(unmask_request(signatures, ()))
    restarted = Hospital(victim.member, bytes(victim.stored))
    assert restarted.unmask(unmask_request(signatures, ())) == answer
    unchanged(restarted, "answered-otherwise", restarted.unmask, unmask_request(signatures, (THIRD,)))
    assert set(answer.seeds) == set(federation.names)
    assert not answer.keys


def test_secrets_are_erased_as_soon_as_they_are_used(federation: Federation) -> None:
    """Own secrets go with masking; held shares and the masked vector with the answer, which remains."""
    layout, victim = layout_for(5), federation[VICTIM]
    requests = federation.requests(federation.holders(), layout)
    dealt = dealt_of(victim.state)
    assert dealt.s in victim.stored
    assert dealt.b in victim.stored
    masked = {
        name: federation[name].mask(request, contribution(layout, 0)) for name, request in requests.items()
    }
    assert dealt.s not in victim.stored
    assert dealt.b not in victim.stored
    opened = victim.state.open
    assert opened is not None
    signatures = {name: each.signature for name, each in masked.items()}
    victim.unmask(unmask_request(signatures, (THIRD,)))
    assert opened.keys[THIRD] in victim.stored
    withheld = [opened.keys[SIBLING], opened.seeds[THIRD], masked[VICTIM].vector]
    assert not any(secret in victim.stored for secret in withheld)
    unchanged(victim, "slot-closed", victim.mask, requests[VICTIM], contribution(layout, 0))
    assert not any(
        secret.hex() in repr(victim.state) or repr(secret) in repr(victim.state) for secret in withheld
    )
    assert repr(victim.state.c) not in repr(victim.state)


def test_split_survivors_leave_a_sum_over_enough() -> None:
    """The worst that different survivor lists do, with 10 holders, t = 7, and h009 in league.

    `Numbers.revealed` says floor(9 * 3 / 6) = 4. So four honest sites' mask keys come out although they
    masked, each from 6 honest holders and the colluder; the seeds of the 5 others come out as well, and their
    sum with the colluder's vector opens. For a fifth site 30 names would be needed, and 27 are given.
    """
    federation, layout = Federation(10), layout_for(10)
    slot, masked, holders = masked_slot(federation, layout)
    honest, revealed = federation.names[:9], federation.names[:4]
    assert Numbers(10, 7, 9).revealed(1) == len(revealed)
    signatures = {name: each.signature for name, each in masked.items()}
    names_left = dict.fromkeys(revealed, 6)
    answers: dict[str, UnmaskAnswer] = {}
    for name in reversed(honest):
        others = sorted((each for each in revealed if each != name), key=lambda each: -names_left[each])
        dropped = tuple(sorted(each for each in others[:3] if names_left[each]))
        names_left |= {each: names_left[each] - 1 for each in dropped}
        answers[name] = federation[name].unmask(unmask_request(signatures, dropped))
    assert not any(names_left.values())
    answers["h009"] = _everything(federation["h009"].state)

    def recovered(kind: str, owner: str) -> bytes:
        told = {name: getattr(answer, kind).get(owner) for name, answer in answers.items()}
        using = {holders.point(name): share for name, share in told.items() if share is not None}
        points = list(using)[: holders.threshold]
        assert len(points) == holders.threshold
        return shamir.combine([using[point] for point in points], points)

    plan, total, undo = slot.plan, MaskedSum(layout), list[Mask]()
    left = [name for name in federation.names if name not in revealed]
    for name in left:
        total.add(masked[name].vector)
        undo.append(self_mask(recovered("seeds", name), RUN, 1, plan.digest(), name).opposite())
    public = {manifest.site: manifest.s for manifest in plan.manifests}
    for gone in revealed:
        s = recovered("keys", gone)
        assert agreement.public_of(s) == public[gone]
        undo += [pair_mask(s, gone, peer, public[peer], RUN, 1, plan.digest()) for peer in left]
    outcome = aggregator.Outcome(total.total(undo, len(left)), (), (), ())
    told = [contribution(layout, seed) for seed, name in enumerate(federation.names) if name in left]
    check_total(layout, told, outcome)
    assert len(left) - 1 == Numbers(10, 7, 9).fewest_honest(1) == 5
    for gone in revealed:
        seeds = [answer.seeds[gone] for answer in answers.values() if gone in answer.seeds]
        assert len(seeds) < holders.threshold  # so that no revealed site's own vector opens


def _everything(state: SiteRun) -> UnmaskAnswer:
    """Return all shares that a colluding site holds, of both kinds."""
    assert state.open is not None
    return UnmaskAnswer(state.run, 1, state.site, state.open.seeds, state.open.keys)


def test_messages_that_are_no_messages() -> None:
    """Bytes of another kind or of another version are refused as such."""
    federation = Federation(3)
    data = federation[VICTIM].stored
    for kind in (Holders, MaskRequest, UnmaskRequest, Layout):
        refused("malformed", load, kind, data)
