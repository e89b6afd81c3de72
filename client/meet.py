"""`zamenis-hospital roster`, `confirm` and `vouch`: getting to know the other hospitals."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

import typer

from client import introductions
from client.acquaintance import ask
from client.home import Home
from client.options import HERE, Directory
from client.peers import Peers
from common import terminal
from common.errors import EnrolmentError, SecAggError
from common.identity import HEXADECIMALS
from common.secagg.vouching import LASTS, How
from common.terminal import console


def roster(directory: Directory = HERE) -> None:
    """Ask who else is in the federation, and show who has compared each one's key."""
    home = Home.load(directory)
    peers = ask(home)
    _show(home, peers)
    if unknown := introductions.not_known(home.roster(peers).peers):
        words = f"Not known yet: {', '.join(unknown)}. At the telephone: zamenis-hospital confirm"
        _print(("", *introductions.wrapped(words)))


def confirm(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME FINGERPRINT | NAME=FINGERPRINT...]",
            help="A hospital and what its operator reads out; default: asked for.",
        ),
    ] = None,
    reject: Annotated[
        str, typer.Option(metavar="NAME", help="Drop another key that is named for it, or its confirmation.")
    ] = "",
    directory: Directory = HERE,
) -> None:
    """Confirm other hospitals by the fingerprints that their operators read out at the telephone."""
    home = Home.load(directory)
    if reject:
        _reject(home, reject)
        return
    peers = ask(home)
    read_out = _pairs(words or [])
    if home.settings.site in read_out:
        raise EnrolmentError(
            f"{home.settings.site}: is this hospital itself. Name the other one, whose operator reads out."
        )
    if strangers := sorted(read_out.keys() - peers.pinned.keys()):
        raise EnrolmentError(f"{', '.join(strangers)}: the coordinator names no such hospital. See `roster`.")
    if read_out and all(read_out.values()):
        _confirm(home, peers, read_out)
    else:
        _converse(home, peers, read_out.keys())
    _show(home, ask(home))


def vouch(
    names: Annotated[list[str] | None, typer.Argument(help="Hospitals that you have confirmed.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="All that you have confirmed.")] = False,
    in_person: Annotated[
        bool, typer.Option("--in-person", help="You met their operators; default: a call.")
    ] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take back what you signed.")] = False,
    directory: Directory = HERE,
) -> None:
    """Vouch for hospitals that you have confirmed, so that others need not telephone them."""
    home = Home.load(directory)
    peers, site = home.peers(), home.settings.site
    if everybody:
        names = [name for name, peer in sorted(peers.pinned.items()) if peer.confirmed]
    if not names:
        raise EnrolmentError("name hospitals that you have confirmed, or --all. See `roster`.")
    told = ", ".join(names)
    if withdraw:
        peers.withdraw(home.identity, names)
    else:
        how: How = "in person" if in_person else "telephone"
        peers.vouch(site, home.identity, home.settings.federation, names, how)
    ask(home)
    ends = datetime.fromtimestamp(peers.clock() + LASTS)
    done = f"vouches no more for {told}." if withdraw else f"vouches for {told}, until {ends:%Y-%m-%d}."
    console.print(f"[green]✓[/] {site} {done}", highlight=False, soft_wrap=True)


def _reject(home: Home, name: str) -> None:
    before = home.peers().pinned
    if name not in before:
        raise EnrolmentError(f"{name}: is not known here. See `roster`.")
    after = home.peers().reject(name)
    kept = name in after.pinned
    done = (
        f"The other key of {name} is forgotten."
        if kept
        else f"{name} is forgotten, and not confirmed any more."
    )
    console.print(f"[green]✓[/] {done}", highlight=False, soft_wrap=True)
    if not kept and any(one.subject == name and one.expires > after.clock() for one in after.held.given):
        terminal.plain(f"  You vouch for it still: zamenis-hospital vouch --withdraw {name}")


def _pairs(words: Iterable[str]) -> dict[str, str]:
    """Return fingerprints by name from `NAME FINGERPRINT` or `NAME=FINGERPRINT ...`, spaced anyhow."""
    told: dict[str, str] = {}
    last = ""
    for word in words:
        name, equals, start = word.partition("=")
        if equals or not told:
            last, told[name] = name, start
        else:
            told[last] += word
    return told


def _converse(home: Home, peers: Peers, chosen: Iterable[str]) -> None:
    """Ask for the fingerprint of every hospital chosen, or of all that no call has confirmed yet."""
    _show(home, peers)
    asked = list(chosen) or [
        name for name, one in sorted(peers.pinned.items()) if one.pending or not one.confirmed
    ]
    if not asked:
        return
    _print(introductions.to_read_out(home.fingerprint))
    for name in asked:
        while read_out := _heard(name):
            try:
                _confirm(home, peers, {name: read_out})
                break
            except (EnrolmentError, SecAggError) as error:
                _print(introductions.wrapped(f"Not confirmed. {error}"))


def _heard(name: str) -> str:
    """Return a fingerprint as it is typed, in one line or several."""
    words = "".join(_typed(f"{name} reads out").split())
    while words and len(words) < HEXADECIMALS and (more := _typed("  and on")):
        words += "".join(more.split())
    return words


def _typed(question: str) -> str:
    answer: str = typer.prompt(question, default="", show_default=False)
    return answer


def _confirm(home: Home, peers: Peers, read_out: dict[str, str]) -> None:
    for name, words in read_out.items():
        _check_whole(name, "".join(words.split()))
    peers.confirm(home.settings.site, home.identity, read_out)
    console.print(f"[green]✓[/] Confirmed: {', '.join(read_out)}.", highlight=False, soft_wrap=True)


def _check_whole(name: str, words: str) -> None:
    """Raise EnrolmentError where this is no whole fingerprint: a slip of the pen, and no alarm."""
    strange = sorted(set(words.lower()) - set("0123456789abcdef"))
    if strange or len(words) != HEXADECIMALS:
        wrong = f"has {' '.join(strange)} in it" if strange else f"is {len(words)} characters long"
        raise EnrolmentError(
            f"{name}: what was typed {wrong}; a fingerprint is {HEXADECIMALS} of 0 to 9 and a to f, "
            "in 16 groups of four. Have it read out again, whole."
        )


def _show(home: Home, peers: Peers) -> None:
    """Print how well every hospital is known, and on whose word."""
    site, known = home.settings.site, dict(home.roster(peers).peers)
    del known[site]
    _print(introductions.table(site, known, peers.held.former))
    _print(introductions.warnings(known))
    _print(introductions.hanging(known))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        terminal.plain(line)
