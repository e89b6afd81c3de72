"""A site's transitions: (state, what came) -> (state', what to send), or a refusal that changes nothing.

Every check that protects this site is here, against its own roster and policy: what it verified when it
dealt for a slot is frozen with the slot (`terms`), and judged again at every later step of it, repetitions
included. In a run: `join`, `advertise`, `deal`; then per slot `review`, train, `mask`, `deal` for the next
slot, `unmask`; at the end `state.finished`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from common.secagg import agreement, dealing, vector
from common.secagg.encoding import digest
from common.secagg.entropy import fresh
from common.secagg.identity import Identity, Roster
from common.secagg.masking import Mask, pair_mask, self_mask
from common.secagg.messages import (
    ADVERTISE,
    MANIFEST,
    MASKED,
    PUBLIC,
    Advertisement,
    Dealing,
    Holders,
    Manifest,
    Masked,
    MaskRequest,
    Payload,
    Plan,
    UnmaskAnswer,
    UnmaskRequest,
    ascending,
    rehearses,
)
from common.secagg.numbers import Policy, neighbours
from common.secagg.quantise import Contribution
from common.secagg.reasons import Reason, refusal
from common.secagg.state import Dealt, Open, SiteRun
from common.secagg.terms import Terms

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Member:
    """One site as it takes part: its name, its key, the peers that it has pinned, what it demands."""

    site: str
    identity: Identity
    roster: Roster
    policy: Policy


def join(member: Member, run: str, epoch: int) -> SiteRun:
    """Return the state of a site that has none for this run yet.

    `epoch` must exceed that of any earlier key in the run, even a lost one: Unix time in seconds does.
    """
    return SiteRun(run, member.site, epoch, fresh(32))


def rejoin(state: SiteRun, epoch: int) -> SiteRun:
    """Return the state with a new sealing key, for a site restored from a backup; its slots are given up."""
    if epoch <= state.epoch:
        raise refusal(Reason.STALE_KEY, state.site)
    return replace(state, epoch=epoch, c=fresh(32), dealt=None, open=None)


def advertise(state: SiteRun, member: Member) -> Advertisement:
    """Return this site's sealing key for the run, signed."""
    public = agreement.public_of(state.c)
    unsigned = Advertisement(state.run, state.site, state.epoch, public)
    return replace(unsigned, signature=member.identity.sign(ADVERTISE, *unsigned.signed()))


def deal(state: SiteRun, member: Member, holders: Holders) -> tuple[SiteRun, Dealing]:
    """Make this site's secrets for a slot and share them among the holders.

    The same request again gets the same dealing. A later slot's dealing replaces one not masked in.
    """
    if state.dealt is not None and state.dealt.holders == holders:
        state.dealt.terms.judged(member.roster, member.policy)
        return state, state.dealt.dealing
    if holders.run != state.run:
        raise refusal(Reason.WRONG_RUN)
    if holders.slot <= state.highest:
        used = state.dealt is not None and state.dealt.holders.slot == holders.slot
        raise refusal(Reason.SLOT_USED if used else Reason.OLD_SLOT)
    peers = _checked_holders(state, member, holders)
    terms = Terms.of(state.site, member.roster, member.policy, holders)
    dealt = dealing.make(member.identity, state.c, holders, terms)
    return replace(state, highest=holders.slot, peers=peers, dealt=dealt), dealt.dealing


def review(state: SiteRun, member: Member, request: MaskRequest, payload: Payload) -> Masked | None:
    """Judge a request before training: the stored answer if there is one, None if the site may train."""
    stored = _stored(state, member, request.plan)
    if stored is None:
        _held_shares(state, member, request, payload)
    return stored


def mask(
    state: SiteRun, member: Member, request: MaskRequest, payload: Payload, contribution: Contribution
) -> tuple[SiteRun, Masked]:
    """Quantise and mask a contribution for the slot; this site's own secrets of the slot end here.

    The same plan again gets the stored bytes, whatever the contribution; another plan is refused.
    """
    stored = _stored(state, member, request.plan)
    if stored is not None:
        return state, stored
    dealt, held = _held_shares(state, member, request, payload)
    plan, agreed = request.plan, request.plan.digest()
    packed = vector.mask(
        plan.layout, contribution, masks(dealt.s, dealt.b, dealt.holders.degree, plan, state.site)
    )
    signature = member.identity.sign(MASKED, plan.run, plan.slot, agreed)
    masked = Masked(plan.run, plan.slot, state.site, packed, signature)
    keys = {peer: share[: dealing.SECRET] for peer, share in held.items()}
    seeds = {peer: share[dealing.SECRET :] for peer, share in held.items()} | {state.site: dealt.own_share}
    opened = Open(plan.slot, dealt.terms, agreed, plan.cohort, seeds, keys, masked)
    return replace(state, dealt=None, open=opened), masked


def unmask(state: SiteRun, member: Member, request: UnmaskRequest) -> tuple[SiteRun, UnmaskAnswer]:
    """Give the shares that the coordinator needs, once; all but the answer is erased with it.

    The same request again gets the stored answer, another one is refused.
    """
    if request.run != state.run:
        raise refusal(Reason.WRONG_RUN)
    opened = state.open
    if opened is None or opened.slot != request.slot:
        raise refusal(Reason.SLOT_CLOSED)
    terms = opened.terms.judged(member.roster, member.policy)
    asked = digest("unmask request", request)
    if opened.answer is not None:
        if hmac.compare_digest(asked, opened.asked):
            return state, opened.answer
        raise refusal(Reason.ANSWERED_OTHERWISE)
    _check_lists(state.site, opened, request)
    answer = UnmaskAnswer(
        request.run,
        request.slot,
        state.site,
        seeds={peer: opened.seeds[peer] for peer in request.survivors},
        keys={peer: opened.keys[peer] for peer in request.dropped},
    )
    closed = replace(opened, terms=terms, seeds={}, keys={}, masked=None, asked=asked, answer=answer)
    return replace(state, open=closed), answer


def _checked_holders(state: SiteRun, member: Member, holders: Holders) -> dict[str, Advertisement]:
    """Return the newest known keys of all peers, after every check of those that this slot names."""
    if not ascending(holders.sites):
        raise refusal(Reason.MALFORMED)
    known = dict(state.peers)
    for each in holders.advertisements:
        member.roster.verify(each.site, each.signature, ADVERTISE, *each.signed())
        newest = known.get(each.site, each)
        if each.run != state.run:
            raise refusal(Reason.WRONG_RUN, each.site)
        if each.epoch < newest.epoch or (each.epoch == newest.epoch and each.c != newest.c):
            raise refusal(Reason.STALE_KEY, each.site)
        known[each.site] = each
    own = known.get(state.site)
    if state.site not in holders.sites or own is None or own.signed() != advertise(state, member).signed():
        raise refusal(Reason.NOT_HOLDER)
    return known


def _stored(state: SiteRun, member: Member, plan: Plan) -> Masked | None:
    """Return what was sent for this very plan before; refuse another plan for a slot that is over."""
    if plan.run != state.run:
        raise refusal(Reason.WRONG_RUN)
    if state.open is None or plan.slot > state.open.slot:
        return None
    if plan.slot < state.open.slot:
        raise refusal(Reason.OLD_SLOT)
    if not hmac.compare_digest(plan.digest(), state.open.digest):
        raise refusal(Reason.SLOT_USED)
    if state.open.masked is None:
        raise refusal(Reason.SLOT_CLOSED)
    state.open.terms.judged(member.roster, member.policy)
    return state.open.masked


def _held_shares(
    state: SiteRun, member: Member, request: MaskRequest, payload: Payload
) -> tuple[Dealt, dict[str, bytes]]:
    """Return this site's dealing, judged anew, and the shares it now holds, by dealer, after every check."""
    dealt, plan = state.dealt, request.plan
    if dealt is None or dealt.holders.slot != plan.slot:
        raise refusal(Reason.NOT_DEALT if plan.slot > state.highest else Reason.OLD_SLOT)
    cohort, holders = plan.cohort, dealt.holders
    inside = ascending(cohort) and set(cohort) <= set(holders.sites) and state.site in cohort
    if not inside or len(cohort) < holders.threshold:
        raise refusal(Reason.BAD_COHORT)
    if plan.payload != payload or (payload == PUBLIC) != rehearses(state.run):
        raise refusal(Reason.OTHER_PAYLOAD)
    if len(cohort) > plan.layout.sites:
        raise refusal(Reason.OVERFLOW)
    dealt = replace(dealt, terms=dealt.terms.judged(member.roster, member.policy))
    if request.sealed.keys() != set(cohort) - {state.site}:
        raise refusal(Reason.SHARES_MISSING)
    held = {}
    for manifest in plan.manifests:
        _check_manifest(dealt, manifest)
        if manifest.site != state.site:
            sealed = request.sealed[manifest.site]
            held[manifest.site] = dealing.open_share(state.c, state.site, holders, manifest, sealed)
    return dealt, held


def _check_manifest(dealt: Dealt, manifest: Manifest) -> None:
    own = dealt.dealing.manifest
    if (manifest.run, manifest.slot) != (own.run, own.slot):
        raise refusal(Reason.WRONG_RUN, manifest.site)
    dealt.terms.verify(manifest.site, manifest.signature, MANIFEST, *manifest.signed())
    if manifest.holders != own.holders or (manifest.site == own.site and manifest != own):
        raise refusal(Reason.HOLDERS_DIFFER, manifest.site)


def masks(s: bytes, b: bytes, degree: int, plan: Plan, site: str) -> list[Mask]:
    """Return the self mask of a site with these secrets, and one for each of its neighbours in the cohort."""
    agreed, own = plan.digest(), plan.cohort.index(site)
    found = [self_mask(b, plan.run, plan.slot, agreed, site)]
    for position in neighbours(own, len(plan.cohort), degree):
        peer = plan.manifests[position]
        found.append(pair_mask(s, site, peer.site, peer.s, plan.run, plan.slot, agreed))
    return found


def _check_lists(site: str, opened: Open, request: UnmaskRequest) -> None:
    survivors: Mapping[str, bytes] = request.survivors
    disjoint = not set(survivors) & set(request.dropped)
    covered = set(survivors) | set(request.dropped) == set(opened.cohort)
    if not (disjoint and covered and ascending(request.dropped) and site in survivors):
        raise refusal(Reason.BAD_LISTS)
    if len(survivors) < opened.terms.numbers.threshold:
        raise refusal(Reason.TOO_FEW_SURVIVORS)
    for peer, signature in survivors.items():
        opened.terms.verify(peer, signature, MASKED, request.run, request.slot, opened.digest)
