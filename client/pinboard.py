"""peers.toml as it is written and read: one table per hospital, and signed vouches as base64.

```toml
format = 2
confirmed-by-digest = []      # hospitals that 0.1.0 confirmed by a roster's digest, until confirmed anew
heard = ["..."]               # vouches of confirmed hospitals for others
given = ["..."]               # this hospital's own

[hospitals.st-bern]
key = "..."
confirmed = true
pending = "..."               # another key that was told for it since; usually there is none
```

Version 0.1.0 had the hospitals' tables at the top and no `format`. What it calls confirmed was confirmed by a
digest over everybody, agreed on with anybody: that no longer counts.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from common.errors import ConfigError, SecAggError
from common.secagg.encoding import dump, load
from common.secagg.identity import Peer
from common.secagg.vouching import Vouch
from common.settings import read_toml

FORMAT = 2
MOST_PEERS = 255


@dataclass(frozen=True)
class Pinned:
    """What peers.toml holds."""

    peers: Mapping[str, Peer] = field(default_factory=dict)
    heard: tuple[Vouch, ...] = ()
    """Confirmed hospitals' words on others."""
    given: tuple[Vouch, ...] = ()
    """This hospital's own words on others, the withdrawn ones too."""
    former: frozenset[str] = frozenset()
    """Hospitals whose confirmation was a roster's digest, and counts no more."""

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Who was heard on whom."""
        return {(one.voucher, one.subject) for one in self.heard}

    def heard_on(self, name: str) -> list[Vouch]:
        """Return what was heard on one hospital."""
        return [one for one in self.heard if one.subject == name]


def to_toml(held: Pinned) -> str:
    """Return the text of peers.toml."""
    tables = {name: _table(peer) for name, peer in sorted(held.peers.items())}
    lists = {
        "confirmed-by-digest": sorted(held.former),
        "heard": _written(held.heard),
        "given": _written(held.given),
    }
    return tomli_w.dumps({"format": FORMAT, **lists, "hospitals": tables})


def from_toml(path: Path) -> Pinned:
    """Return what a peers.toml holds. ConfigError where it is damaged or of a later version."""
    tree = read_toml(path)
    form = tree.get("format", 1)
    try:
        if form == FORMAT:
            return _read(tree)
        if isinstance(form, dict) or "format" not in tree:
            return _read_first(tree)
    except (TypeError, KeyError, ValueError, AttributeError, SecAggError) as error:
        raise ConfigError(f"{path.name}: is damaged. Restore it from a backup, or join again.") from error
    raise ConfigError(
        f"{path.name}: is of format {form}, and this version reads {FORMAT}; install a later one."
    )


def _read(tree: Mapping[str, Any]) -> Pinned:
    peers = {
        name: Peer(
            _bytes(one["key"]), confirmed=one["confirmed"] is True, pending=_bytes(one.get("pending", ""))
        )
        for name, one in tree["hospitals"].items()
    }
    heard, given = (tuple(load(Vouch, _bytes(text)) for text in tree[key]) for key in ("heard", "given"))
    return Pinned(peers, heard, given, frozenset(tree["confirmed-by-digest"]))


def _read_first(tree: Mapping[str, Any]) -> Pinned:
    peers = {name: Peer(_bytes(one["key"])) for name, one in tree.items()}
    return Pinned(peers, former=frozenset(name for name, one in tree.items() if one["confirmed"] is True))


def _table(peer: Peer) -> dict[str, Any]:
    table = {"key": _text(peer.public), "confirmed": peer.confirmed}
    return {**table, "pending": _text(peer.pending)} if peer.pending else table


def _written(vouches: tuple[Vouch, ...]) -> list[str]:
    return [_text(dump(one)) for one in vouches]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
