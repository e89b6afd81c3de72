"""The coordinator's transitions: whom to ask to deal, the plan of a slot, the sum, and the unmasking.

The coordinator protects itself and the run's progress here: each refusal names the site at fault, which is
then counted as dropped or left out of the next slot. What protects a site is checked at the site. Nothing
here outlives a slot: a coordinator that restarts takes a new slot.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from common.secagg import agreement
from common.secagg.identity import Roster
from common.secagg.layout import Layout
from common.secagg.masking import Mask, pair_mask, self_mask
from common.secagg.messages import (
    ADVERTISE,
    MANIFEST,
    MASKED,
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
    commitment_to,
)
from common.secagg.numbers import Numbers, default_numbers, neighbours
from common.secagg.quantise import Total
from common.secagg.reasons import Reason, refusal
from common.secagg.recover import Recovery
from common.secagg.vector import MaskedSum


def check_advertisement(roster: Roster, run: str, advertisement: Advertisement) -> None:
    """Raise SecAggError unless a site's sealing key is signed by it for this run."""
    if advertisement.run != run:
        raise refusal(Reason.WRONG_RUN, advertisement.site)
    roster.verify(advertisement.site, advertisement.signature, ADVERTISE, *advertisement.signed())


def name_holders(
    run: str, slot: int, advertisements: Iterable[Advertisement], numbers: Numbers | None = None
) -> Holders:
    """Return the request to deal for a slot, the same for all holders; `numbers` default by their count."""
    ordered = tuple(sorted(advertisements, key=lambda each: each.site))
    chosen = numbers or default_numbers(len(ordered))
    return Holders(run, slot, chosen.threshold, chosen.degree, ordered)


def check_dealing(roster: Roster, holders: Holders, dealing: Dealing) -> None:
    """Raise SecAggError unless a dealing is signed by its site, for exactly these holders."""
    manifest = dealing.manifest
    roster.verify(manifest.site, manifest.signature, MANIFEST, *manifest.signed())
    if (manifest.run, manifest.slot) != (holders.run, holders.slot):
        raise refusal(Reason.WRONG_RUN, manifest.site)
    if manifest.holders != holders.digest(roster.keys(holders.sites)):
        raise refusal(Reason.HOLDERS_DIFFER, manifest.site)
    if dealing.sealed.keys() != set(holders.sites) - {manifest.site}:
        raise refusal(Reason.SHARES_MISSING, manifest.site)


def mask_requests(
    holders: Holders, dealings: Iterable[Dealing], payload: Payload, layout: Layout
) -> dict[str, MaskRequest]:
    """Return one request for each site that dealt: they are the slot's cohort."""
    by_site = {dealing.manifest.site: dealing for dealing in dealings}
    cohort = sorted(by_site)
    if len(cohort) < holders.threshold:
        raise refusal(Reason.BAD_COHORT)
    manifests = tuple(by_site[site].manifest for site in cohort)
    plan = Plan(holders.run, holders.slot, payload, layout, manifests)
    return {
        site: MaskRequest(plan, {peer: by_site[peer].sealed[site] for peer in cohort if peer != site})
        for site in cohort
    }


@dataclass(frozen=True)
class Outcome:
    """A slot's end: what was learned, who was in it, who was not, and whose shares were wrong."""

    total: Total
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    liars: tuple[str, ...]


@dataclass
class Slot:
    """One slot at the coordinator: masked vectors in, `request`, answers in, `finish`."""

    roster: Roster
    holders: Holders
    plan: Plan
    _survivors: dict[str, bytes] = field(default_factory=dict)
    _answers: dict[str, UnmaskAnswer] = field(default_factory=dict)
    _asked: UnmaskRequest | None = None
    _finished: bool = False

    def __post_init__(self) -> None:
        self._agreed = self.plan.digest()
        self._sum = MaskedSum(self.plan.layout)

    def add(self, masked: Masked) -> None:
        """Add a site's vector, as it comes; refused if it is late, repeated, unsigned or of another plan."""
        site = masked.site
        self._belongs(masked, self.plan.cohort)
        if self._asked is not None or site in self._survivors:
            raise refusal(Reason.SLOT_USED, site)
        self.roster.verify(site, masked.signature, MASKED, masked.run, masked.slot, self._agreed)
        if len(masked.vector) != self.plan.layout.packed_bytes:
            raise refusal(Reason.WRONG_LENGTH, site)
        self._sum.add(masked.vector)
        self._survivors[site] = masked.signature

    def request(self) -> UnmaskRequest:
        """Return the request for all survivors: the list is closed by it and never changes again."""
        if len(self._survivors) < self.holders.threshold:
            raise refusal(Reason.TOO_FEW_SURVIVORS)
        if self._asked is None:
            dropped = tuple(site for site in self.plan.cohort if site not in self._survivors)
            self._asked = UnmaskRequest(self.plan.run, self.plan.slot, dict(self._survivors), dropped)
        return self._asked

    def answer(self, answer: UnmaskAnswer) -> None:
        """Take a survivor's answer; refused unless it has one share of the right kind for each site."""
        self._belongs(answer, self._survivors)
        asked = self.request()
        whole = answer.seeds.keys() == asked.survivors.keys() and answer.keys.keys() == set(asked.dropped)
        if not whole or any(len(share) != 32 for share in (*answer.seeds.values(), *answer.keys.values())):
            raise refusal(Reason.SHARES_MISSING, answer.site)
        self._answers[answer.site] = answer

    @property
    def answered(self) -> bool:
        """Whether enough answers are in to finish; more help only against wrong ones."""
        return len(self._answers) >= self.holders.threshold

    def finish(self) -> Outcome:
        """Return the sum, once; SecAggError names what stands in the way, and more answers may remove it."""
        if self._finished:
            raise refusal(Reason.SLOT_CLOSED)
        if not self.answered:
            raise refusal(Reason.TOO_FEW_ANSWERS)
        recovery = Recovery(self.holders.threshold)
        masks = [*self._self_masks(recovery), *self._pair_masks(recovery)]
        self._finished = True
        total = self._sum.total([mask.opposite() for mask in masks], len(self._survivors))
        survivors, dropped = tuple(sorted(self._survivors)), self.request().dropped
        return Outcome(total, survivors, dropped, tuple(sorted(recovery.liars)))

    def _self_masks(self, recovery: Recovery) -> Iterable[Mask]:
        """Yield every survivor's self mask."""
        run, slot = self.plan.run, self.plan.slot
        for manifest in self.plan.manifests:
            if manifest.site in self._survivors:
                shares = {holder: answer.seeds[manifest.site] for holder, answer in self._answers.items()}
                seed = self._secret(recovery, manifest, shares, self._opens_commitment(manifest))
                yield self_mask(seed, run, slot, self._agreed, manifest.site)

    def _pair_masks(self, recovery: Recovery) -> Iterable[Mask]:
        """Yield every mask that a survivor shares with a dropped site, as the survivor applied it."""
        plan = self.plan
        for place, manifest in enumerate(plan.manifests):
            if manifest.site in self._survivors:
                continue
            shares = {holder: answer.keys[manifest.site] for holder, answer in self._answers.items()}
            s = self._secret(recovery, manifest, shares, _has_public(manifest.s))
            for position in neighbours(place, len(plan.cohort), self.holders.degree):
                peer = plan.manifests[position]
                if peer.site in self._survivors:
                    mask = pair_mask(s, manifest.site, peer.site, peer.s, plan.run, plan.slot, self._agreed)
                    yield mask.opposite()

    def _secret(
        self,
        recovery: Recovery,
        manifest: Manifest,
        shares: Mapping[str, bytes],
        fits: Callable[[bytes], bool],
    ) -> bytes:
        points = {holder: self.holders.point(holder) for holder in shares}
        return recovery.secret(manifest.site, shares, points, fits)

    def _opens_commitment(self, manifest: Manifest) -> Callable[[bytes], bool]:
        run, slot, site = manifest.run, manifest.slot, manifest.site
        return lambda seed: hmac.compare_digest(commitment_to(seed, run, slot, site), manifest.commitment)

    def _belongs(self, message: Masked | UnmaskAnswer, among: Iterable[str]) -> None:
        if (message.run, message.slot) != (self.plan.run, self.plan.slot):
            raise refusal(Reason.WRONG_RUN, message.site)
        if message.site not in among:
            raise refusal(Reason.BAD_COHORT, message.site)


def _has_public(public: bytes) -> Callable[[bytes], bool]:
    return lambda secret: hmac.compare_digest(agreement.public_of(secret), public)
