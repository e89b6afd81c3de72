"""Finding who spoilt a sum: every site masks a public vector in a run of its own, opened site by site."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from common import wire
from common.errors import SecAggError, WireError
from common.secagg import aggregator, rehearsal
from common.secagg.encoding import dump, load
from common.secagg.identity import Roster
from common.secagg.layout import Layout
from common.secagg.messages import PUBLIC, REHEARSAL, Advertisement, Dealing, Holders
from common.secagg.rehearsal import Rehearsed
from server.gather import collect

logger = logging.getLogger("zamenis.server")


def find_broken(
    grid: Grid,
    sites: Mapping[str, int],
    identities: Mapping[str, bytes],
    roster: Roster,
    layout: Layout,
    *,
    seconds: float,
) -> list[str]:
    """Return those of `sites` whose masked public vector is provably not what it had to be.

    Who does not answer, or refuses, is not among them. Nobody is where too few sites take part.
    """
    run = REHEARSAL + secrets.token_hex(16)
    broken: list[str] = []
    keys: dict[str, Advertisement] = {}
    dealings: dict[str, Dealing] = {}

    def ask(kind: str, told: Mapping[str, wire.Secured], take: Callable[[str, Message], None]) -> None:
        messages = {
            site: wire.ask_secured(sites[site], kind, one, seconds=seconds) for site, one in told.items()
        }
        for site, words in collect(grid, messages, take, timeout=seconds).items():
            logger.warning("rehearsal: %s: %s", site, words)

    def take_key(site: str, reply: Message) -> None:
        told = load(Advertisement, wire.read_secured(reply).answer)
        aggregator.check_advertisement(roster, run, told)
        keys[told.site] = told

    def take_dealing(site: str, reply: Message) -> None:
        told = load(Dealing, wire.read_secured(reply).answer)
        aggregator.check_dealing(roster, holders, told)
        dealings[told.manifest.site] = told

    def take_vector(site: str, reply: Message) -> None:
        secured, vector = wire.read_masked(reply)
        told = load(Rehearsed, secured.answer)
        if told.masked.site != site:
            raise WireError("it answers in another's name.")
        try:
            rehearsal.check(roster, holders, plan, replace(told, masked=replace(told.masked, vector=vector)))
        except SecAggError:
            broken.append(site)
            raise

    try:
        ask(wire.ADVERTISE, dict.fromkeys(sites, wire.Secured(run, identities=identities)), take_key)
        holders: Holders = aggregator.name_holders(run, 1, keys.values())
        ask(wire.DEAL, dict.fromkeys(keys, wire.Secured(run, holders=dump(holders))), take_dealing)
        requests = aggregator.mask_requests(holders, dealings.values(), PUBLIC, layout)
        plan = next(iter(requests.values())).plan
        asked = {site: wire.Secured(run, request=dump(request)) for site, request in requests.items()}
        ask(wire.REHEARSE, asked, take_vector)
    except SecAggError as error:
        logger.warning("a rehearsal is given up: %s", error)
    ask(wire.FINISH, dict.fromkeys(keys, wire.Secured(run)), lambda site, reply: None)
    return sorted(broken)
