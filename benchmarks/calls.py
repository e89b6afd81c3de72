"""How many telephone calls a federation needs until every hospital counts at every other one.

    python benchmarks/calls.py [HOSPITALS...]

Each way is played on the hospitals' own peers.toml: a call confirms both directions, vouchers sign for all
whom they called, and at the end everybody must count everywhere. `three vouchers` bears one that withdraws.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from client.peers import peers_of
from client.pinboard import Pinned, to_toml
from common.identity import fingerprint
from common.secagg.identity import Identity, Peer

FEDERATION = "lung"


@dataclass
class Telephone:
    """Hospitals with a peers.toml each, told of each other by a coordinator; counts their calls."""

    folder: Path
    size: int
    calls: int = 0
    identities: dict[str, Identity] = field(init=False)

    def __post_init__(self) -> None:
        self.identities = {f"h{number}": Identity.make() for number in range(self.size)}
        for name in self.identities:
            others = {one: Peer(key) for one, key in self.told.items() if one != name}
            self._file(name).write_text(to_toml(Pinned(others)))

    @property
    def told(self) -> dict[str, bytes]:
        """What the coordinator says of everybody."""
        return {name: identity.public for name, identity in self.identities.items()}

    def meet(self, *names: str) -> None:
        """Let operators on one line read out their fingerprints to each other."""
        self.calls += 1
        heard = {name: fingerprint(self.told[name]) for name in names}
        for name in names:
            others = {one: read_out for one, read_out in heard.items() if one != name}
            peers_of(self._file(name)).confirm(name, self.identities[name], others)

    def vouch(self, names: Iterable[str]) -> None:
        """Let hospitals vouch for all whom they called, and everybody hear it."""
        words = []
        for name in names:
            peers = peers_of(self._file(name))
            called = [one for one, peer in peers.pinned.items() if peer.confirmed]
            words += peers.vouch(name, self.identities[name], FEDERATION, called, "telephone").held.given
        for name in self.identities:
            peers_of(self._file(name)).learn(name, self.told, words, FEDERATION)

    def strangers(self) -> int:
        """Return how many pairs there are in which one does not count at the other."""
        rosters = [
            peers_of(self._file(name)).roster(name, identity, FEDERATION)
            for name, identity in self.identities.items()
        ]
        return sum(roster.unconfirmed(self.identities) for roster in rosters)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.toml"


def in_pairs(line: Telephone) -> None:
    """Everybody calls everybody."""
    for pair in combinations(line.identities, 2):
        line.meet(*pair)


def in_conference(line: Telephone) -> None:
    """All are on one line."""
    line.meet(*line.identities)


def through(count: int) -> Callable[[Telephone], None]:
    """Return the way in which so many hospitals call everybody and vouch."""

    def play(line: Telephone) -> None:
        vouchers = list(line.identities)[:count]
        for pair in combinations(line.identities, 2):
            if pair[0] in vouchers:
                line.meet(*pair)
        line.vouch(vouchers)

    return play


WAYS = {
    "in pairs": in_pairs,
    "two vouchers": through(2),
    "three vouchers": through(3),
    "one conference": in_conference,
}


def calls(way: Callable[[Telephone], None], size: int) -> int:
    """Return the calls that this way takes; all must count everywhere at the end, nobody before."""
    with TemporaryDirectory() as folder:
        line = Telephone(Path(folder), size)
        assert line.strangers() == size * (size - 1)
        way(line)
        assert line.strangers() == 0
        return line.calls


def main() -> None:
    """Print the table."""
    sizes = [int(word) for word in sys.argv[1:]] or [8, 20]
    table = Table("calls", *(f"{size} hospitals" for size in sizes))
    for name, way in WAYS.items():
        table.add_row(name, *(str(calls(way, size)) for size in sizes))
    Console().print(table)


if __name__ == "__main__":
    main()
