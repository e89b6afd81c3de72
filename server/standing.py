"""Who takes part in a meta-training's sums, and who sits out because it stopped them.

A site that is asked for its part of a slot and does not do it (does not deal, deals and does not mask, masks
and does not unmask) gets two marks, one that does its part loses one. At four marks it sits out four slots,
then eight, sixteen, and 32 from there on, and comes back with two: one more miss sends it out again. So a
liar costs two slots, then at most one in 33; a hospital with a bad line that misses no more than one slot in
three is never sent out, and one that was cut off is back by itself. Where more than half of those who were
asked miss a slot, the fault is nearer to the coordinator, and nobody is marked.

Nobody can be sent out by what another says of it: marks are for what the coordinator itself did not get. Only
where more sites than may lie cannot open what a site sealed, or where it is proved wrong (`bar`), is it out
for good; and who accuses that many others is marked as if it had been mute.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

logger = logging.getLogger("zamenis.server")
MISS, LIMIT = 2, 4
"""Marks of a missed slot, and those at which a site sits out."""
SITS_OUT = "sits out"
SHORTEST, LONGEST = 4, 32
"""Slots that it sits out, the first time and at most."""


@dataclass
class Record:
    """One site's conduct so far."""

    marks: int = 0
    spell: int = SHORTEST
    until: float = 0
    """First slot in which it may take part again."""
    why: str = ""


@dataclass
class Standing:
    """The conduct of a meta-training's sites, slot after slot."""

    colluders: int
    """Sites that may lie together: no fewer than one more can get another out."""
    _records: dict[str, Record] = field(default_factory=dict)
    _accusers: dict[str, set[str]] = field(default_factory=dict)
    """Who could not open what a site sealed, by that site."""

    def out(self, slot: int) -> dict[str, str]:
        """Return who sits a slot out, and why."""
        return {site: each.why for site, each in self._records.items() if slot < each.until}

    def bar(self, site: str, why: str) -> None:
        """Let a site take no more part: it is proved wrong."""
        logger.warning("%s takes no more part in this training's sums: %s", site, why)
        self._record(site).until, self._record(site).why = math.inf, f"takes no more part: {why}"

    def accuse(self, accuser: str, accused: str) -> bool:
        """Note that a site cannot open another's shares; return whether the accuser is to be believed.

        Those whom more sites accuse than may lie are barred.
        """
        against = self._accusers.setdefault(accused, set())
        against.add(accuser)
        if len(against) > self.colluders:
            self.bar(accused, "what it seals cannot be opened")
        alone = [site for site, by in self._accusers.items() if accuser in by and len(by) <= self.colluders]
        return len(alone) <= self.colluders

    def judge(self, slot: int, asked: Collection[str], missed: Mapping[str, str]) -> None:
        """Mark those of a slot who missed it, and clear those who did not; `missed` says what each did."""
        if 2 * len(missed) > len(asked):
            logger.info("slot %d: most of the hospitals miss it, so none is to blame", slot)
            return
        for site in asked:
            record = self._record(site)
            if site not in missed:
                record.marks = max(0, record.marks - 1)
                continue
            record.marks += MISS
            if record.marks >= LIMIT and record.until < math.inf:
                self._send_out(site, record, slot, missed[site])

    def _send_out(self, site: str, record: Record, slot: int, why: str) -> None:
        record.until = slot + 1 + record.spell
        record.why = f"{SITS_OUT} {record.spell} slots: {why}"
        record.marks, record.spell = LIMIT - MISS, min(2 * record.spell, LONGEST)
        logger.warning("%s %s", site, record.why)

    def _record(self, site: str) -> Record:
        return self._records.setdefault(site, Record())


@dataclass
class Duty:
    """What the sites of one slot were asked to do, and who has not done it."""

    slot: int = 0
    trained: bool = False
    """Whether anybody was asked to train and mask; before that, nothing is lost by one who is away."""
    asked: set[str] = field(default_factory=set)
    missed: dict[str, str] = field(default_factory=dict)
    """What each site has not done yet, in words."""

    def expect(self, sites: Collection[str], otherwise: str) -> None:
        """Ask sites for their part; `otherwise` is said of those who do not do it."""
        self.asked.update(sites)
        self.missed |= dict.fromkeys(sites, otherwise)

    def done(self, site: str) -> None:
        """Note that a site did what it was asked for last."""
        self.missed.pop(site, None)
