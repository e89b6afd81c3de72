"""Secure aggregation at the coordinator: a round's mean, of which it sees nothing but the sum.

Two exchanges a round (`common.secagg`): sites train, mask, and deal for the next slot; survivors unmask.
Before the first slot, or where dealings are too few for one, an exchange of keys or of dealings precedes.
A slot that cannot be finished is given up: phi stays as it was, and the next round takes another slot.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from common import wire
from common.errors import DataError, SecAggError, WireError
from common.secagg import aggregator
from common.secagg.aggregator import Outcome, Slot
from common.secagg.encoding import dump, load
from common.secagg.identity import Peer, Roster
from common.secagg.messages import Advertisement, Dealing, Holders, Masked, Payload, UnmaskAnswer
from common.secagg.numbers import default_colluders
from common.secagg.reasons import Reason, refusal
from common.sections import Training
from server.gather import Gathered, collect
from server.layout import layout_of
from server.rehearsal import find_broken
from server.standing import Duty, Standing

logger = logging.getLogger("zamenis.server")
GOODBYE = 10.0
"""Seconds for sites to forget a run's secrets; those who miss it do so by themselves later."""


@dataclass
class Dealt:
    """Who was asked to deal for a slot, and the dealings that came."""

    holders: Holders
    dealings: dict[str, Dealing] = field(default_factory=dict)

    def ready(self, cohort: Sequence[str]) -> bool:
        """Return whether enough of a cohort dealt to be summed."""
        return len(self.among(cohort)) >= self.holders.threshold

    def among(self, cohort: Sequence[str]) -> list[Dealing]:
        """Return the dealings of a cohort."""
        return [self.dealings[site] for site in cohort if site in self.dealings]


@dataclass
class SecureSum:
    """One meta-training's secure aggregation over `sites` (Flower's node ids by name)."""

    training: Training
    bits: int
    parameters: int
    sites: Mapping[str, int]
    identities: Mapping[str, bytes]
    """Every site's identity key."""
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    _keys: dict[str, Advertisement] = field(default_factory=dict)
    _slot: int = 0
    _clip: float = 0.0
    _next: Dealt | None = None

    def __post_init__(self) -> None:
        self._standing = Standing(max(1, default_colluders(len(self.sites))))
        self._roster = Roster({site: Peer(key) for site, key in self.identities.items()})

    def gather(
        self, grid: Grid, instructions: Mapping[str, Message], then: Sequence[str], clip: float = 0.0
    ) -> Gathered:
        """Return what a round's cohort brings together; `then` is the next round's cohort, or nobody.

        `clip` is the round's, as the instructions say it; 0: as far as [training] goes.
        """
        self._clip = clip
        cohort = sorted(instructions)
        found = Gathered(dict.fromkeys(cohort, wire.SILENT))
        duty = Duty()
        try:
            dealt = self._dealings(grid, cohort, found, duty)
            slot = self._train(grid, dealt, instructions, then, found, duty)
            outcome = self._unmask(grid, slot, duty)
        except SecAggError as error:
            self._give_up(error, cohort, found)
            if error.reason == Reason.IMPOSSIBLE_SUM:
                self._rehearse(grid, cohort, found)
        else:
            self._take_sum(outcome, cohort, found)
        self._standing.judge(duty.slot, duty.asked, duty.missed)
        return found

    def _give_up(self, error: SecAggError, cohort: Sequence[str], found: Gathered) -> None:
        logger.warning("a slot is given up: %s", error)
        if error.reason == Reason.UNRECOVERABLE and error.site:
            self._standing.bar(error.site, "what it dealt gives no secret")
        given_up = dict.fromkeys(cohort, f"the slot is given up: {error}")
        found.missing = given_up | {site: words for site, words in found.missing.items() if site in cohort}

    def _rehearse(self, grid: Grid, cohort: Sequence[str], found: Gathered) -> None:
        """Find who spoils sums where everybody can check them, and go on without."""
        sites = {site: self.sites[site] for site in cohort if site not in found.barred}
        layout = layout_of(self.training, self.bits, self.parameters, len(sites), self._clip)
        seconds = self.training.round_timeout
        broken = find_broken(grid, sites, self.identities, self._roster, layout, seconds=seconds)
        for site in broken:
            self._standing.bar(site, "it masks another vector than it should, as a rehearsal shows")
        names = ", ".join(broken) or "nobody: whoever spoilt the sum lies in sums alone, or was not there"
        found.remarks.append(f"the sum was impossible; a rehearsal on a public vector found {names}")
        logger.warning("%s", found.remarks[-1])

    def _take_sum(self, outcome: Outcome, cohort: Sequence[str], found: Gathered) -> None:
        found.missing = {site: words for site, words in found.missing.items() if site in cohort}
        for site in outcome.liars:
            logger.warning("%s gave wrong shares; the sum was found without them", site)
        metrics = outcome.total.metrics
        found.mean = torch.from_numpy(outcome.total.mean)
        found.sites = len(outcome.survivors)
        found.episodes, found.loss_sum = round(metrics["episodes"]), metrics["loss-sum"]
        found.within = round(metrics["within"])

    def finish(self, grid: Grid) -> None:
        """Let every site erase the run's secrets."""
        told = wire.Secured(self.run)
        messages = {
            site: wire.ask_secured(self.sites[site], wire.FINISH, told, seconds=GOODBYE)
            for site in self._keys
        }
        self._exchange(grid, messages, lambda site, reply: None, {}, timeout=GOODBYE)

    def _dealings(self, grid: Grid, cohort: Sequence[str], found: Gathered, duty: Duty) -> Dealt:
        """Return a slot's dealings: those that came with the last round, or new ones if these are too few."""
        dealt = self._next
        if dealt is None or not self._sound(dealt) or not dealt.ready(cohort):
            dealt = self._deal_anew(grid, cohort, found, duty)
        duty.slot, found.barred = dealt.holders.slot, self._standing.out(dealt.holders.slot)
        found.missing |= found.barred
        return dealt

    def _sound(self, dealt: Dealt) -> bool:
        """Return whether nobody who holds shares of a slot has been sent out since."""
        return self._standing.out(dealt.holders.slot).keys().isdisjoint(dealt.holders.sites)

    def _deal_anew(self, grid: Grid, cohort: Sequence[str], found: Gathered, duty: Duty) -> Dealt:
        wanted = cohort if self._keys else sorted(self.sites)
        unknown = [site for site in wanted if site not in self._keys]
        first = not self._keys
        self._ask(grid, wire.ADVERTISE, unknown, wire.Secured(self.run, identities=self.identities), found)
        if first:
            _nobody_waits(found.missing)
        dealt = self._open(cohort)
        duty.expect(dealt.holders.sites, "it does not deal")
        self._ask(grid, wire.DEAL, dealt.holders.sites, self._request_to_deal(dealt), found)
        for site in dealt.dealings:
            duty.done(site)
        return dealt

    def _open(self, cohort: Sequence[str]) -> Dealt:
        """Take a new slot and name its holders: those of a cohort with a known key who do not sit out."""
        self._slot += 1
        out = self._standing.out(self._slot)
        known = [self._keys[site] for site in cohort if site in self._keys and site not in out]
        self._next = Dealt(aggregator.name_holders(self.run, self._slot, known))
        return self._next

    def _request_to_deal(self, dealt: Dealt) -> wire.Secured:
        return wire.Secured(self.run, holders=dump(dealt.holders))

    def _ask(self, grid: Grid, kind: str, sites: Sequence[str], told: wire.Secured, found: Gathered) -> None:
        """Ask sites for their keys or dealings; those who answer are no longer silent."""
        seconds = self.training.round_timeout
        messages = {site: wire.ask_secured(self.sites[site], kind, told, seconds=seconds) for site in sites}
        take = self._take_key if kind == wire.ADVERTISE else self._take_dealing
        self._exchange(grid, messages, take, found.missing, timeout=seconds)

    def _train(
        self,
        grid: Grid,
        dealt: Dealt,
        instructions: Mapping[str, Message],
        then: Sequence[str],
        found: Gathered,
        duty: Duty,
    ) -> Slot:
        """Send the round's instructions with their plan, and take masked vectors and the next dealings."""
        if not dealt.ready(sorted(instructions)):
            raise refusal(Reason.BAD_COHORT)
        first = next(iter(instructions.values()))
        payload = Payload.of(*wire.payload_of(first))
        holders = len(dealt.holders.sites)
        layout = layout_of(self.training, self.bits, self.parameters, holders, self._clip)
        requests = aggregator.mask_requests(dealt.holders, dealt.among(sorted(instructions)), payload, layout)
        slot = Slot(self._roster, dealt.holders, next(iter(requests.values())).plan)
        following = self._open(then) if then else None
        then = [site for site in then if site not in self._standing.out(self._slot)]
        later = self._request_to_deal(following) if following else wire.Secured(self.run)
        messages = {
            site: wire.secure(
                instructions[site],
                replace(later if site in then else wire.Secured(self.run), request=dump(request)),
            )
            for site, request in requests.items()
        }
        messages |= self._others(then, messages, later)

        def take(site: str, reply: Message) -> None:
            if site not in requests:
                self._take(site, reply)
                return
            secured, vector = wire.read_masked(reply)
            slot.add(replace(load(Masked, secured.answer), vector=vector))
            found.missing.pop(site, None)
            duty.done(site)
            if secured.dealing:
                self._keep_dealing(site, load(Dealing, secured.dealing))

        duty.expect(requests, "it dealt and did not mask")
        accusing = self._exchange(grid, messages, take, found.missing, timeout=self.training.round_timeout)
        for site in accusing:
            duty.done(site)
        return slot

    def _others(
        self, then: Sequence[str], messages: Mapping[str, Message], later: wire.Secured
    ) -> dict[str, Message]:
        """Return what those are asked who do not train now and shall do so next."""
        seconds = self.training.round_timeout
        asked = {}
        for site in then:
            if site in messages:
                continue
            known = site in self._keys
            told = later if known else wire.Secured(self.run, identities=self.identities)
            kind = wire.DEAL if known else wire.ADVERTISE
            asked[site] = wire.ask_secured(self.sites[site], kind, told, seconds=seconds)
        return asked

    def _unmask(self, grid: Grid, slot: Slot, duty: Duty) -> Outcome:
        """Ask the survivors for their shares and return the sum; where answers are too few, say whose."""
        asked = slot.request()
        told = wire.Secured(self.run, request=dump(asked))
        seconds = self.training.round_timeout
        messages = {
            site: wire.ask_secured(self.sites[site], wire.UNMASK, told, seconds=seconds)
            for site in asked.survivors
        }

        def take(site: str, reply: Message) -> None:
            answer = load(UnmaskAnswer, wire.read_secured(reply).answer)
            _same(site, answer.site)
            slot.answer(answer)
            duty.done(site)

        troubles: dict[str, str] = {}
        duty.expect(asked.survivors, "it masked and did not unmask")
        self._exchange(grid, messages, take, troubles, timeout=seconds)
        for site, words in troubles.items():
            logger.warning("%s does not unmask: %s", site, words)
        if not slot.answered:
            mute = ", ".join(site for site in asked.survivors if site in duty.missed)
            raise refusal(Reason.TOO_FEW_ANSWERS, mute)
        return slot.finish()

    def _accuses(self, accuser: str, words: str) -> bool:
        """Return whether a refusal says, believably, that another site's shares cannot be opened."""
        for accused in self.sites:
            if words == str(refusal(Reason.BAD_SHARE, accused)):
                return self._standing.accuse(accuser, accused)
        return False

    def _take(self, site: str, reply: Message) -> None:
        """Take what a site that does not train was asked for: its key, or a dealing."""
        if site in self._keys:
            self._take_dealing(site, reply)
        else:
            self._take_key(site, reply)

    def _take_key(self, site: str, reply: Message) -> None:
        advertisement = load(Advertisement, wire.read_secured(reply).answer)
        _same(site, advertisement.site)
        aggregator.check_advertisement(self._roster, self.run, advertisement)
        self._keys[site] = advertisement

    def _take_dealing(self, site: str, reply: Message) -> None:
        self._keep_dealing(site, load(Dealing, wire.read_secured(reply).answer))

    def _keep_dealing(self, site: str, dealing: Dealing) -> None:
        assert self._next is not None  # noqa: S101 - dealings are asked for only once a slot is open
        _same(site, dealing.manifest.site)
        aggregator.check_dealing(self._roster, self._next.holders, dealing)
        self._next.dealings[site] = dealing

    def _exchange(
        self,
        grid: Grid,
        messages: Mapping[str, Message],
        take: Callable[[str, Message], None],
        missing: dict[str, str],
        *,
        timeout: float,
    ) -> set[str]:
        """Send, and take replies as they come; why one cannot be used is put into `missing`.

        Return those who cannot do their part for what another sealed.
        """
        troubles = collect(grid, messages, take, timeout=timeout)
        missing |= troubles
        for site, words in troubles.items():
            if words == str(refusal(Reason.NOT_HOLDER)):
                self._keys.pop(site, None)  # it has made a new one, which is asked for next
        return {site for site, words in troubles.items() if self._accuses(site, words)}


def _nobody_waits(missing: Mapping[str, str]) -> None:
    """Raise DataError where hospitals wait for their operators: without them it would be another cohort."""
    words = str(refusal(Reason.WAITS_FOR_ALLOW))
    if waiting := sorted(site for site, told in missing.items() if told == words):
        raise DataError(f"{', '.join(waiting)}: {words} Resume this run once they have allowed it.")


def _same(asked: str, told: str) -> None:
    if asked != told:
        raise WireError("it answers in another's name.")
