"""Finding who spoilt a sum: every site masks a public vector in a run of its own, opened site by site."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common import wire
from common.errors import SecAggError
from common.secagg import aggregator, rehearsal
from common.secagg.encoding import dump, load
from common.secagg.identity import Roster
from common.secagg.layout import Layout
from common.secagg.messages import PUBLIC, REHEARSAL
from common.secagg.rehearsal import Rehearsed
from server.dealings import Dealings, Dealt, same
from server.gather import collect
from server.standing import Standing

logger = logging.getLogger("zamenis.server")


@dataclass
class Rehearsal:
    """One rehearsal of `sites` (Flower's node ids by name)."""

    grid: Grid
    sites: Mapping[str, int]
    identities: Mapping[str, bytes]
    """Every site's identity key."""
    roster: Roster
    layout: Layout
    seconds: float
    """Longest wait for replies."""
    run: str = field(default_factory=lambda: REHEARSAL + secrets.token_hex(16))

    def find_broken(self) -> list[str]:
        """Return those whose masked public vector is provably not what it had to be.

        Who does not answer, or refuses, is not among them. Nobody is where too few sites take part.
        """
        told = Dealings(self.run, self.identities, self.roster, Standing(len(self.sites)))
        broken: list[str] = []
        try:
            self._ask(told, self.sites)
            dealt = told.open(sorted(told.keys))
            self._ask(told, dealt.holders.sites, dealt)
            broken = self._mask(dealt)
        except SecAggError as error:
            logger.warning("a rehearsal is given up: %s", error)
        done = dict.fromkeys(told.keys, wire.Secured(self.run))
        self._exchange(self._messages(wire.FINISH, done), lambda site, reply: None)
        return broken

    def _ask(self, told: Dealings, sites: Iterable[str], dealt: Dealt | None = None) -> None:
        """Ask sites for their keys, or their dealings."""
        asked = {site: told.ask(site, self.sites[site], dealt, seconds=self.seconds) for site in sites}
        self._exchange(asked, told.take)

    def _mask(self, dealt: Dealt) -> list[str]:
        """Let those who dealt mask, and return who sent what it should not."""
        requests = aggregator.mask_requests(dealt.holders, dealt.dealings.values(), PUBLIC, self.layout)
        plan = next(iter(requests.values())).plan
        broken = []

        def take(site: str, reply: Message) -> None:
            secured, vector = wire.read_masked(reply)
            told = load(Rehearsed, secured.answer)
            same(site, told.masked.site)
            whole = replace(told, masked=replace(told.masked, vector=vector))
            try:
                rehearsal.check(self.roster, dealt.holders, plan, whole)
            except SecAggError:
                broken.append(site)
                raise

        asked = {site: wire.Secured(self.run, request=dump(request)) for site, request in requests.items()}
        self._exchange(self._messages(wire.REHEARSE, asked), take)
        return sorted(broken)

    def _messages(self, kind: str, told: Mapping[str, wire.Secured]) -> dict[str, Message]:
        return {
            site: wire.ask_secured(self.sites[site], kind, one, seconds=self.seconds)
            for site, one in told.items()
        }

    def _exchange(self, messages: Mapping[str, Message], take: Callable[[str, Message], None]) -> None:
        for site, words in collect(self.grid, messages, take, timeout=self.seconds).items():
            logger.warning("rehearsal: %s: %s", site, words)
