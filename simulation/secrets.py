"""Simulated hospitals' part of secure aggregation: keys from the operating system, everyone confirmed.

Secrets are never derived from the seed, in simulation neither: the sums repeat without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.pinboard import Pinned, to_toml
from common.files import PRIVATE, write_bytes, write_text
from common.secagg.identity import Identity, Peer


def make_secrets(folder: Path, sites: Sequence[str]) -> dict[str, bytes]:
    """Give every site its folder of secrets below `folder`, once; return their public identity keys."""
    identities = {site: _identity(folder / site / "identity.key") for site in sites}
    keys = {site: identity.public for site, identity in identities.items()}
    for site in sites:
        peers = {name: Peer(key, confirmed=True) for name, key in keys.items() if name != site}
        write_text(folder / site / "peers.toml", to_toml(Pinned(peers)))
    return keys


def _identity(path: Path) -> Identity:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, Identity.make().secret, mode=PRIVATE)
    return Identity(path.read_bytes())
