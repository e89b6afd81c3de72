"""`zamenis-hospital status`: how the node is. What is damaged is told in its place, beside the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from client.home import SERVICE, Home
from client.introductions import not_known, with_another_key
from client.options import HERE, Directory
from client.policy import Lacking, lacking
from common import service, terminal
from common.errors import ZamenisError
from common.identity import in_two_lines

if TYPE_CHECKING:
    from client.node import Work

STRICTER = "what holds is stricter than what 0.1.0 took:"


def status(directory: Directory = HERE) -> None:
    """Tell how the node is."""
    from client.registration import gone

    home = Home.load(directory)
    missing, policy = _policy(home)
    lines = {
        "hospital": home.settings.site,
        "federation": f"{home.settings.federation} at {home.settings.host}:{home.settings.port}",
        "version": version("zamenis"),
        **_node(home),
        "data": ", ".join(sorted({entry.label for entry in home.settings.data})) or "nothing registered",
        "not there": "\n".join(gone(home.settings.data)),
        "hours": home.settings.hours or "any",
        **_others(home),
        "waits": "" if policy else _or_why(lambda: _waits(home)),  # the policy decides what waits
        "fingerprint": _or_why(lambda: in_two_lines(home.fingerprint)),
        "policy": f"lacks keys; {STRICTER}" if missing else policy,
    }
    terminal.facts(lines)
    if missing:
        rows = [(one.key, json.dumps(one.now), json.dumps(one.before)) for one in missing]
        terminal.table(("key", "holds", "0.1.0"), rows)


def _node(home: Home) -> dict[str, str]:
    """Return what the running node says of itself."""
    from client.node import state_of

    if not service.status(folder=home.directory, name=SERVICE):
        return {"node": "not running; zamenis-hospital start"}
    told = state_of(home)
    return {
        "node": told.state,
        "because": told.why,
        "NOT CONFINED": f"the worker is not kept from {told.open}" if told.open else "",
        "run": _work(told.work) if told.work else "",
        "answered": f"{told.answered} message{'s' * (told.answered != 1)} since it started",
    }


def _work(work: Work) -> str:
    doing = "computing since" if work.busy else "last message"
    place = f"{work.run}, round {work.round}" if work.round else work.run
    return f"{place}; {doing} {_clock(work.since)}"


def _clock(moment: float) -> str:
    then, now = datetime.fromtimestamp(moment), datetime.now()
    return f"{then:%H:%M:%S}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M}"


def _others(home: Home) -> dict[str, str]:
    """Return who else is there, and who is not to be counted on; or what is wrong with peers.toml."""
    try:
        peers = home.peers()
        others = home.roster(peers).peers
    except ZamenisError as error:
        return {"others": str(error)}
    unknown, pending = ", ".join(not_known(others)), ", ".join(with_another_key(others))
    former = "; 0.1.0 confirmed a digest over everybody, which counts no more" if peers.held.former else ""
    return {
        "others": ", ".join(sorted(peers.pinned)) or "nobody known; zamenis-hospital roster asks",
        "not confirmed": f"{unknown}; zamenis-hospital confirm{former}" if unknown else "",
        "another key": f"{pending}; zamenis-hospital roster says what that can mean" if pending else "",
    }


def _waits(home: Home) -> str:
    from client.allow import listed, waiting

    waits = "; ".join(f"sums over {listed(one.cohort)}" for one in waiting(home))
    return f"{waits}; zamenis-hospital allow" if waits else ""


def _policy(home: Home) -> tuple[list[Lacking], str]:
    """Return the strict defaults that stand for keys of 0.1.0's, or none and what is wrong with the file."""
    try:
        return lacking(home.policy), ""
    except ZamenisError as error:
        return [], str(error)


def _or_why(tell: Callable[[], str]) -> str:
    """Return what is told, or why it cannot be."""
    try:
        return tell()
    except ZamenisError as error:
        return str(error)
