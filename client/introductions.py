"""How well this hospital knows each other one, in plain words for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from common.identity import in_two_lines
from common.secagg.identity import VOUCHERS, Peer
from common.terminal import COLUMNS


def table(site: str, peers: Mapping[str, Peer], former: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield a line or more for every hospital: its name, and who has compared its key with it.

    `former` are those whose confirmation was a roster's digest, which counts no more.
    """
    width = max(map(len, ("hospital", site, *peers))) + 2
    yield f"{'hospital':<{width}}known by"
    yield f"{site:<{width}}this hospital"
    for name, peer in sorted(peers.items()):
        words = _known_by(peer, name in former)
        yield from textwrap.wrap(
            words,
            COLUMNS,
            initial_indent=f"{name:<{width}}",
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )


def _known_by(peer: Peer, former: bool) -> str:
    if peer.confirmed:
        words = "a call"
    elif peer.trusted:
        words = f"vouchers: {', '.join(peer.vouchers)}"
    elif peer.vouchers:
        missing = VOUCHERS - len(peer.vouchers)
        words = f"too few vouchers: {', '.join(peer.vouchers)}; {missing} more, or a call"
    elif former:
        words = "nobody: a digest over everybody, as 0.1.0 compared it, counts no more"
    else:
        words = "nobody"
    return f"{words}. ANOTHER KEY is named now: see below" if peer.pending else words


def warnings(peers: Mapping[str, Peer]) -> Iterator[str]:
    """Yield what another key for a known name can mean, and what to do, per hospital that has one."""
    for name, peer in sorted(peers.items()):
        if peer.pending:
            yield ""
            yield from wrapped(
                f"{name}: the coordinator names another key than the one pinned here. Either {name} has "
                "joined anew, or somebody has put himself in its place. The pinned key goes on to count. "
                f"Telephone {name}: `confirm {name} FINGERPRINT` takes the key that is read out to you, "
                f"`confirm --reject {name}` drops the other one."
            )


def hanging(peers: Mapping[str, Peer]) -> Iterator[str]:
    """Yield, for each set of vouchers, which hospitals could be inventions if all of the set had lied."""
    vouched = {name: frozenset(peer.vouchers) for name, peer in peers.items() if _hangs(peer)}
    if vouched:
        yield ""
    for vouchers in sorted(set(vouched.values()), key=sorted):
        names = sorted(name for name, by in vouched.items() if by <= vouchers)
        counted = f"{len(names)} hospital{'s' * (len(names) > 1)}"
        lied = "both lied" if len(vouchers) == 2 else "all lied"
        yield from wrapped(
            f"If {_and(sorted(vouchers))} {lied}: {counted} may be invented, {', '.join(names)}."
        )


def not_known(peers: Mapping[str, Peer]) -> list[str]:
    """Return the hospitals that count as inventions of the coordinator's, ascending."""
    return [name for name, peer in sorted(peers.items()) if not peer.trusted]


def with_another_key(peers: Mapping[str, Peer]) -> list[str]:
    """Return the hospitals for which another key than the pinned one is named, ascending."""
    return [name for name, peer in sorted(peers.items()) if peer.pending]


def to_read_out(fingerprint: str) -> Iterator[str]:
    """Yield what to do at the telephone, with this hospital's own fingerprint in two lines."""
    yield ""
    yield "Telephone the others, by numbers that do not come from the coordinator. Type"
    yield "what each operator reads out, or nothing where he is not on the line. Read out:"
    for half in in_two_lines(fingerprint).splitlines():
        yield f"  {half}"


def _hangs(peer: Peer) -> bool:
    return peer.trusted and not peer.confirmed


def _and(names: list[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def wrapped(words: str) -> list[str]:
    """Return words as lines of a terminal."""
    return textwrap.wrap(words, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
