"""A malicious hospital against real peers and the real coordinator: named, left out, and the run goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.secagg import aggregator, agreement, dealing, shamir
from common.secagg.encoding import dump, load
from common.secagg.messages import MANIFEST, MASKED, Dealing, Holders, Manifest, Masked, UnmaskAnswer
from common.secagg.state import Dealt
from common.secagg.terms import Terms
from tests.common.secagg.federation import (
    PAYLOAD,
    Federation,
    check_total,
    contribution,
    layout_for,
    masked_slot,
    refused,
)

LIAR = "h002"


@pytest.fixture
def federation() -> Federation:
    """Five hospitals, one of which will lie."""
    return Federation(5)


def genuine(federation: Federation, holders: Holders) -> Dealt:
    """Return what the liar would honestly deal, with its secrets."""
    liar = federation[LIAR]
    terms = Terms.of(LIAR, liar.member.roster, liar.member.policy, holders)
    return dealing.make(liar.member.identity, liar.state.c, holders, terms)


def signed(federation: Federation, manifest: Manifest) -> Manifest:
    """Return a manifest with the liar's own signature."""
    return replace(manifest, signature=federation[LIAR].member.identity.sign(MANIFEST, *manifest.signed()))


def resealed(federation: Federation, holders: Holders, manifest: Manifest, shares: list[bytes]) -> Dealing:
    """Return the liar's dealing of any shares it likes, properly sealed."""
    c, sealed = federation[LIAR].state.c, {}
    for holder, share in zip(holders.advertisements, shares, strict=True):
        if holder.site != LIAR:
            key = dealing._key(c, holder, manifest, dealer=agreement.public_of(c), holder=holder)
            sealed[holder.site] = agreement.seal(key, share, holder.site, *manifest.signed())
    return Dealing(manifest, sealed)


def rest_goes_on(federation: Federation, slot_number: int) -> None:
    """Assert that the next slot, dealt without the liar, gives the others' mean."""
    others = [name for name in federation.names if name != LIAR]
    holders, layout = federation.holders(slot_number, others), layout_for(5)
    requests = federation.requests(holders, layout)
    slot, told = federation.slot(holders, requests), []
    for seed, name in enumerate(others):
        told.append(contribution(layout, seed))
        slot.add(federation[name].mask(requests[name], told[-1]))
    check_total(layout, told, federation.finish(slot, others))


def with_dealing(federation: Federation, holders: Holders, lie: Dealing) -> aggregator.Slot:
    """Return a slot in which the liar dealt `lie` and everyone else honestly, all masked that would."""
    layout = layout_for(5)
    dealings = [lie if name == LIAR else federation[name].deal(holders) for name in federation.names]
    for each in dealings:
        aggregator.check_dealing(federation.roster, holders, each)
    requests = aggregator.mask_requests(holders, dealings, PAYLOAD, layout)
    slot = aggregator.Slot(federation.roster, holders, requests[LIAR].plan)
    identity = federation[LIAR].member.identity
    for seed, name in enumerate(federation.names):
        if name != LIAR:
            slot.add(federation[name].mask(requests[name], contribution(layout, seed)))
    signature = identity.sign(MASKED, slot.plan.run, slot.plan.slot, slot.plan.digest())
    slot.add(Masked(slot.plan.run, slot.plan.slot, LIAR, bytes(layout.packed_bytes), signature))
    return slot


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_truncated_shares(federation: Federation, size: int) -> None:
    """A share of the wrong length, sealed as it should be, is refused by its holder and its dealer named."""
    holders = federation.holders()
    lie = resealed(federation, holders, genuine(federation, holders).dealing.manifest, [bytes(size)] * 5)
    refused("bad-share", with_dealing, federation, holders, lie, by=LIAR)
    rest_goes_on(federation, 2)


def test_shares_of_another_secret(federation: Federation) -> None:
    """Shares that do not give the committed seed: the slot is abandoned by name, the next does without."""
    holders = federation.holders()
    manifest = genuine(federation, holders).dealing.manifest
    slot = with_dealing(
        federation, holders, resealed(federation, holders, manifest, shamir.split(bytes(64), 4, 5))
    )
    others = [name for name in federation.names if name != LIAR]
    refused("unrecoverable", federation.finish, slot, others, by=LIAR)
    rest_goes_on(federation, 2)


def test_a_commitment_to_another_seed(federation: Federation) -> None:
    """Right shares, wrong commitment: the same."""
    holders = federation.holders()
    dealt = genuine(federation, holders)
    manifest = signed(federation, replace(dealt.dealing.manifest, commitment=bytes(32)))
    shares = shamir.split(dealt.s + dealt.b, holders.threshold, 5)
    slot = with_dealing(federation, holders, resealed(federation, holders, manifest, shares))
    others = [name for name in federation.names if name != LIAR]
    refused("unrecoverable", federation.finish, slot, others, by=LIAR)


def test_a_mask_key_that_forces_every_agreement(federation: Federation) -> None:
    """A public key of order 1, duly signed: nobody masks with it, and the dealer is named."""
    holders = federation.holders()
    dealt = genuine(federation, holders)
    manifest = signed(federation, replace(dealt.dealing.manifest, s=bytes(32)))
    shares = shamir.split(dealt.s + dealt.b, holders.threshold, 5)
    refused(
        "bad-key", with_dealing, federation, holders, resealed(federation, holders, manifest, shares), by=LIAR
    )
    rest_goes_on(federation, 2)


def test_a_copied_mask_key(federation: Federation) -> None:
    """A peer's mask key and commitment shown as one's own end the slot, and bring nothing of the peer's."""
    holders = federation.holders()
    victim = federation["h000"].deal(holders).manifest
    dealt = genuine(federation, holders)
    manifest = signed(federation, replace(dealt.dealing.manifest, s=victim.s, commitment=victim.commitment))
    shares = shamir.split(dealt.s + dealt.b, holders.threshold, 5)
    slot = with_dealing(federation, holders, resealed(federation, holders, manifest, shares))
    others = [name for name in federation.names if name != LIAR]
    refused("unrecoverable", federation.finish, slot, others, by=LIAR)


def test_dealings_that_the_coordinator_refuses(federation: Federation) -> None:
    """Unsigned, for another slot, for other holders, or not for each of them."""
    holders = federation.holders()
    honest = federation[LIAR].deal(holders)
    few = {name: share for name, share in honest.sealed.items() if name != "h000"}
    other = genuine(federation, federation.holders(2)).dealing
    for lie, reason in (
        (replace(honest, manifest=replace(honest.manifest, s=bytes(32))), "untrusted"),
        (other, "wrong-run"),
        (genuine(federation, replace(holders, threshold=5)).dealing, "holders-differ"),
        (replace(honest, sealed=few), "shares-missing"),
        (replace(honest, sealed=honest.sealed | {LIAR: b""}), "shares-missing"),
    ):
        refused(reason, aggregator.check_dealing, federation.roster, holders, lie, by=LIAR)
    too_few = [federation[name].deal(holders) for name in federation.names[:3]]
    refused("bad-cohort", aggregator.mask_requests, holders, too_few, PAYLOAD, layout_for(5))
    foreign = federation.holders().advertisements[2]
    refused("wrong-run", aggregator.check_advertisement, federation.roster, "run-0", foreign, by=LIAR)
    refused(
        "untrusted",
        aggregator.check_advertisement,
        federation.roster,
        "run-1",
        replace(foreign, epoch=9),
        by=LIAR,
    )


def test_vectors_that_the_coordinator_refuses(federation: Federation) -> None:
    """Too short, signed for another plan, of another slot, by a stranger, twice, or late: dropped, and on."""
    layout = layout_for(5)
    slot, masked, _ = masked_slot(federation, layout)
    honest, identity = masked[LIAR], federation[LIAR].member.identity
    elsewhere = identity.sign(MASKED, honest.run, honest.slot, bytes(32))
    for lie, reason, by in (
        (replace(honest, vector=honest.vector[:-1]), "wrong-length", LIAR),
        (replace(honest, signature=elsewhere), "untrusted", LIAR),
        (replace(honest, slot=2), "wrong-run", LIAR),
        (replace(honest, site="h999"), "bad-cohort", "h999"),
        (replace(honest, site="h000"), "untrusted", "h000"),
    ):
        refused(reason, slot.add, lie, by=by)
    for name, each in masked.items():
        if name != LIAR:
            slot.add(each)
    refused("slot-used", slot.add, masked["h000"], by="h000")
    slot.request()
    refused("slot-used", slot.add, honest, by=LIAR)
    others = [name for name in federation.names if name != LIAR]
    told = [contribution(layout, seed) for seed, name in enumerate(federation.names) if name != LIAR]
    check_total(layout, told, federation.finish(slot, others))


def test_answers_that_the_coordinator_refuses(federation: Federation) -> None:
    """Shares missing, too short or of the wrong kind, or an answer by someone who did not survive."""
    layout = layout_for(5)
    slot, masked, _ = masked_slot(federation, layout)
    for name, each in masked.items():
        if name != "h004":
            slot.add(each)
    answer = federation[LIAR].unmask(slot.request())
    fewer = {name: share for name, share in answer.seeds.items() if name != "h000"}
    for lie, reason in (
        (replace(answer, seeds=fewer), "shares-missing"),
        (replace(answer, seeds=answer.seeds | {"h000": b"short"}), "shares-missing"),
        (replace(answer, keys={}), "shares-missing"),
        (replace(answer, seeds=answer.seeds | answer.keys, keys={}), "shares-missing"),
        (replace(answer, slot=7), "wrong-run"),
    ):
        refused(reason, slot.answer, lie, by=LIAR)
    stranger = UnmaskAnswer(answer.run, answer.slot, "h004", answer.seeds, answer.keys)
    refused("bad-cohort", slot.answer, stranger, by="h004")


def test_a_sum_out_of_bounds(federation: Federation) -> None:
    """Nobody can look into a masked vector, but a sum that honest sites cannot make is not used."""
    layout = layout_for(5)
    slot, masked, _ = masked_slot(federation, layout)
    spoilt = bytearray(masked[LIAR].vector)
    for place in range(1, len(spoilt), 2):
        spoilt[place] ^= 0x80  # moves some coordinate of every word far up or down
    for name, each in masked.items():
        slot.add(replace(each, vector=bytes(spoilt)) if name == LIAR else each)
    refused("impossible-sum", federation.finish, slot, federation.names)


def test_every_message_survives_the_wire(federation: Federation) -> None:
    """What was sent is what is read, for every record of the protocol."""
    slot, masked, holders = masked_slot(federation, layout_for(5))
    for each in masked.values():
        slot.add(each)
    request = slot.request()
    answer = federation[LIAR].unmask(request)
    for record in (*holders.advertisements, holders, slot.plan, *masked.values(), request, answer):
        assert load(type(record), dump(record)) == record
