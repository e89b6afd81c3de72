"""What the sites of a run have told so far: their keys, and their dealings for the slot that comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from common import wire
from common.errors import WireError
from common.secagg import aggregator
from common.secagg.encoding import dump, load
from common.secagg.identity import Roster
from common.secagg.messages import Advertisement, Dealing, Holders
from server.standing import Standing


@dataclass
class Dealt:
    """Who was asked to deal for a slot, and the dealings that came."""

    holders: Holders
    dealings: dict[str, Dealing] = field(default_factory=dict)

    def ready(self, cohort: Sequence[str], least: int) -> bool:
        """Return whether enough of a cohort dealt to be summed, and no fewer than `least`."""
        return len(self.among(cohort)) >= max(self.holders.threshold, least)

    def among(self, cohort: Sequence[str]) -> list[Dealing]:
        """Return the dealings of a cohort."""
        return [self.dealings[site] for site in cohort if site in self.dealings]

    def request(self) -> wire.Secured:
        """Return what asks a holder to deal."""
        return wire.Secured(self.holders.run, holders=dump(self.holders))


@dataclass
class Dealings:
    """One run's keys, the slots that were opened, and the dealings for the last of them."""

    run: str
    identities: Mapping[str, bytes]
    """Every site's identity key."""
    roster: Roster
    standing: Standing
    keys: dict[str, Advertisement] = field(default_factory=dict)
    slot: int = 0
    """The last that was opened; 0: none yet."""
    _next: Dealt | None = None

    def ready(self, cohort: Sequence[str], least: int) -> Dealt | None:
        """Return what was dealt for the open slot, where it is enough and no holder was sent out since."""
        dealt = self._next
        if dealt is None or not dealt.ready(cohort, least):
            return None
        out = self.standing.out(dealt.holders.slot)
        return dealt if out.keys().isdisjoint(dealt.holders.sites) else None

    def open(self, cohort: Sequence[str]) -> Dealt:
        """Take a new slot and name its holders: those of a cohort with a known key who do not sit out."""
        self.slot += 1
        out = self.standing.out(self.slot)
        known = [self.keys[site] for site in cohort if site in self.keys and site not in out]
        self._next = Dealt(aggregator.name_holders(self.run, self.slot, known))
        return self._next

    def close(self, slot: int) -> None:
        """Note that a slot's sum is being opened: what was dealt for it is of no further use."""
        if self._next is not None and self._next.holders.slot == slot:
            self._next = None

    def ask(self, site: str, node: int, dealt: Dealt | None, *, seconds: float) -> Message:
        """Return what a site that does not train is asked for: its key, or where that is known a dealing."""
        if dealt and site in self.keys:
            return wire.ask_secured(node, wire.DEAL, dealt.request(), seconds=seconds)
        told = wire.Secured(self.run, identities=self.identities)
        return wire.ask_secured(node, wire.ADVERTISE, told, seconds=seconds)

    def take(self, site: str, reply: Message) -> None:
        """Take what `ask` asked for. SecAggError, WireError: it is not what it should be."""
        answer = wire.read_secured(reply).answer
        if site in self.keys:
            self.keep(site, load(Dealing, answer))
            return
        advertisement = load(Advertisement, answer)
        same(site, advertisement.site)
        aggregator.check_advertisement(self.roster, self.run, advertisement)
        self.keys[site] = advertisement

    def keep(self, site: str, dealing: Dealing) -> None:
        """Take a dealing for the open slot."""
        assert self._next is not None  # noqa: S101 - dealings are asked for only once a slot is open
        same(site, dealing.manifest.site)
        aggregator.check_dealing(self.roster, self._next.holders, dealing)
        self._next.dealings[site] = dealing

    def forget(self, site: str) -> None:
        """Forget a site's key: it has made a new one, which is asked for next."""
        self.keys.pop(site, None)


def same(asked: str, told: str) -> None:
    """Raise WireError where a site answers in another's name."""
    if asked != told:
        raise WireError("it answers in another's name.")
