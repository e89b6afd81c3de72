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
from common.bounds import layout_of
from common.errors import DataError, SecAggError
from common.secagg import aggregator
from common.secagg.aggregator import Outcome, Slot
from common.secagg.encoding import dump, load
from common.secagg.identity import Peer, Roster
from common.secagg.messages import Dealing, Masked, MaskRequest, Payload, UnmaskAnswer
from common.secagg.numbers import default_colluders
from common.secagg.reasons import Reason, refusal
from common.sections import Training
from server.dealings import Dealings, Dealt, same
from server.gather import NEXT_SLOT, OTHERS, Gathered, collect
from server.rehearsal import Rehearsal
from server.standing import Duty, Standing

logger = logging.getLogger("zamenis.server")
GOODBYE = 10.0
"""Seconds for sites to forget a run's secrets; those who miss it do so by themselves later."""


@dataclass
class SecureSum:
    """One meta-training's secure aggregation over `sites` (Flower's node ids by name)."""

    training: Training
    bits: int
    parameters: int
    sites: Mapping[str, int]
    identities: Mapping[str, bytes]
    """Every site's identity key."""
    least: int = 0
    """Sites that a sum must cover, beside what the threshold asks: fewer are neither trained nor opened."""
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    _clip: float = 0.0

    def __post_init__(self) -> None:
        self._standing = Standing(max(1, default_colluders(len(self.sites))))
        self._roster = Roster({site: Peer(key) for site, key in self.identities.items()})
        self._told = Dealings(self.run, self.identities, self._roster, self._standing)

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
        if duty.trained or not found.coming():  # who is waited for is not marked for being away
            self._standing.judge(duty.slot, duty.asked, duty.missed)
        return found

    def _give_up(self, error: SecAggError, cohort: Sequence[str], found: Gathered) -> None:
        few = error.reason in (Reason.BAD_COHORT, Reason.TOO_FEW_SURVIVORS)
        logger.info("a slot is given up: %s", "too few hospitals are there for it." if few else error)
        if error.reason == Reason.UNRECOVERABLE and error.site:
            self._standing.bar(error.site, "what it dealt gives no secret")
        given_up = dict.fromkeys(cohort, OTHERS if few else f"the slot is given up: {error}")
        found.missing = given_up | {site: words for site, words in found.missing.items() if site in cohort}

    def _rehearse(self, grid: Grid, cohort: Sequence[str], found: Gathered) -> None:
        """Find who spoils sums where everybody can check them, and go on without."""
        sites = {site: self.sites[site] for site in cohort if site not in found.barred}
        layout = layout_of(self.training, self.bits, self.parameters, len(sites), self._clip)
        seconds = self.training.round_timeout
        broken = Rehearsal(grid, sites, self.identities, self._roster, layout, seconds).find_broken()
        for site in broken:
            self._standing.bar(site, "it masks another vector than it should, as a rehearsal shows")
        names = ", ".join(broken) or "nobody: whoever spoilt the sum lies in sums alone, or was not there"
        found.remarks.append(f"the sum was impossible; a rehearsal on a public vector found {names}")
        logger.warning("%s", found.remarks[-1])

    def _take_sum(self, outcome: Outcome, cohort: Sequence[str], found: Gathered) -> None:
        for site in found.missing.keys() & set(outcome.survivors):
            logger.warning("%s is in the sum, and deals wrongly for the next: %s", site, found.missing[site])
        out = set(cohort) - set(outcome.survivors)
        found.missing = {site: words for site, words in found.missing.items() if site in out}
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
            for site in self._told.keys
        }
        self._exchange(grid, messages, lambda site, reply: None, {}, timeout=GOODBYE)

    def _dealings(self, grid: Grid, cohort: Sequence[str], found: Gathered, duty: Duty) -> Dealt:
        """Return a slot's dealings: those that came with the last round, or new ones if these are too few."""
        dealt = self._told.ready(cohort, self.least)
        if dealt:
            found.missing |= dict.fromkeys(set(cohort) - dealt.dealings.keys(), NEXT_SLOT)
        else:
            dealt = self._deal_anew(grid, cohort, found, duty)
        duty.slot, found.barred = dealt.holders.slot, self._standing.out(dealt.holders.slot)
        found.missing |= found.barred
        return dealt

    def _deal_anew(self, grid: Grid, cohort: Sequence[str], found: Gathered, duty: Duty) -> Dealt:
        first = not self._told.keys
        wanted = sorted(self.sites) if first else cohort
        self._ask(grid, [site for site in wanted if site not in self._told.keys], found)
        if first:
            _nobody_waits(found.missing)
        dealt = self._told.open(cohort)
        duty.expect(dealt.holders.sites, "it does not deal")
        self._ask(grid, dealt.holders.sites, found, dealt)
        for site in dealt.dealings:
            duty.done(site)
        return dealt

    def _ask(self, grid: Grid, sites: Sequence[str], found: Gathered, dealt: Dealt | None = None) -> None:
        """Ask sites for their keys, or their dealings; those who answer are no longer silent."""
        seconds = self.training.round_timeout
        messages = {site: self._told.ask(site, self.sites[site], dealt, seconds=seconds) for site in sites}
        self._exchange(grid, messages, self._told.take, found.missing, timeout=seconds)

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
        if not dealt.ready(sorted(instructions), self.least):
            for site in dealt.dealings:
                found.missing.pop(site, None)
            raise refusal(Reason.BAD_COHORT)
        first = next(iter(instructions.values()))
        payload = Payload.of(*wire.payload_of(first))
        holders = len(dealt.holders.sites)
        layout = layout_of(self.training, self.bits, self.parameters, holders, self._clip)
        requests = aggregator.mask_requests(dealt.holders, dealt.among(sorted(instructions)), payload, layout)
        slot = Slot(self._roster, dealt.holders, next(iter(requests.values())).plan)
        messages = self._messages(requests, instructions, then)

        def take(site: str, reply: Message) -> None:
            if site not in requests:
                self._told.take(site, reply)
                return
            secured, vector = wire.read_masked(reply)
            slot.add(replace(load(Masked, secured.answer), vector=vector))
            found.missing.pop(site, None)
            duty.done(site)
            if secured.dealing:
                self._told.keep(site, load(Dealing, secured.dealing))

        duty.expect(requests, "it dealt and did not mask")
        duty.trained = True
        accusing = self._exchange(grid, messages, take, found.missing, timeout=self.training.round_timeout)
        for site in accusing:
            duty.done(site)
        return slot

    def _messages(
        self, requests: Mapping[str, MaskRequest], instructions: Mapping[str, Message], then: Sequence[str]
    ) -> dict[str, Message]:
        """Return a round's messages: its plan to who trains, the next slot to who trains next."""
        following = self._told.open(then) if then else None
        out = self._standing.out(self._told.slot)
        nothing = wire.Secured(self.run)
        later = {site: following.request() for site in then if following and site not in out}
        messages = {
            site: wire.secure(instructions[site], replace(later.get(site, nothing), request=dump(request)))
            for site, request in requests.items()
        }
        seconds = self.training.round_timeout
        others = [site for site in later if site not in messages]
        asked = {site: self._told.ask(site, self.sites[site], following, seconds=seconds) for site in others}
        return messages | asked

    def _unmask(self, grid: Grid, slot: Slot, duty: Duty) -> Outcome:
        """Ask the survivors for their shares and return the sum; where answers are too few, say whose."""
        asked = slot.request()
        if len(asked.survivors) < self.least:
            raise refusal(Reason.TOO_FEW_SURVIVORS)
        self._told.close(asked.slot)
        told = wire.Secured(self.run, request=dump(asked))
        seconds = self.training.round_timeout
        messages = {
            site: wire.ask_secured(self.sites[site], wire.UNMASK, told, seconds=seconds)
            for site in asked.survivors
        }

        def take(site: str, reply: Message) -> None:
            answer = load(UnmaskAnswer, wire.read_secured(reply).answer)
            same(site, answer.site)
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
                self._told.forget(site)
        return {site for site, words in troubles.items() if self._accuses(site, words)}


def _nobody_waits(missing: Mapping[str, str]) -> None:
    """Raise DataError where hospitals wait for their operators: without them it would be another cohort."""
    words = str(refusal(Reason.WAITS_FOR_ALLOW))
    if waiting := sorted(site for site, told in missing.items() if told == words):
        raise DataError(f"{', '.join(waiting)}: {words} Resume this run once they have allowed it.")
