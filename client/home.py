"""A hospital node's folder: who it is, its keys, what it has registered, and where everything else lies.

```
node.toml                          site, federation, address, node number, device, hours, data
ca.pem                             the one authority that this node trusts
policy.toml                        what this hospital allows
keys/node.key, keys/identity.key   made here; they never leave
peers.toml                         other hospitals' identity keys, and who has compared them
paused                             there while the node is to answer nothing
state/, logs/
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import Field, field_validator

from client.book import Book
from client.peers import Peers, peers_of
from client.pinboard import Pinned, to_toml
from common.errors import ConfigError
from common.files import PRIVATE, fresh_folder, write_bytes, write_text
from common.identity import fingerprint
from common.names import Host, Name, Port, origin
from common.secagg.identity import Identity, Peer, Roster
from common.sections import Section, Share, Task, TaskName
from common.settings import read_toml, validate

SERVICE = "node"
"""The name under which a running node holds its folder (`common.service`)."""
HOURS = r"^(([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9])?$"


class Registered(Section):
    """A folder of cases that this hospital lets the federation learn from."""

    folder: str
    state: str
    """Where the cache and the secret that splits patients lie."""
    labels: str = ""
    """The file with the labels, where it is not the folder's own."""
    kind: TaskName = "classification"
    label: str
    classes: tuple[str, ...]
    adaptation_share: Share = 0.5
    """Share of its patients to learn from; who is settled already stays where they are."""

    @property
    def task(self) -> Task:
        """The task that the folder is registered for."""
        return Task(kind=self.kind, label=self.label, classes=self.classes)


class NodeSettings(Section):
    """node.toml."""

    site: Name
    """This hospital's name in the federation."""
    federation: Name
    host: Host
    port: Port
    node_id: Annotated[int, Field(ge=1, lt=2**64)]
    """Flower's number of this node."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    """Processor threads for computing; 0: all cores."""
    hours: Annotated[str, Field(pattern=HOURS)] = ""
    """When the node works, by this machine's clock, e.g. "18:00-06:00"; empty: always."""
    data: tuple[Registered, ...] = ()

    @field_validator("data")
    @classmethod
    def _folders_differ(cls, data: tuple[Registered, ...]) -> tuple[Registered, ...]:
        entries = [(one.folder, one.label) for one in data]
        if len(set(entries)) != len(entries):
            raise ValueError("registers a folder's label twice; every one once")
        return data


@dataclass(frozen=True)
class Keys:
    """What a hospital proves itself by."""

    node: ec.EllipticCurvePrivateKey = field(repr=False)
    """P-384; signs every request to Flower."""
    identity: Ed25519PrivateKey = field(repr=False)
    """Signs what other hospitals check."""

    @classmethod
    def make(cls) -> Keys:
        """Return new keys, from the operating system."""
        return cls(ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, folder: Path) -> Keys:
        """Return the keys in `folder`; ConfigError where one is missing or damaged."""
        node, identity = _private_key(folder / "node.key"), _private_key(folder / "identity.key")
        if not isinstance(node, ec.EllipticCurvePrivateKey) or not isinstance(identity, Ed25519PrivateKey):
            raise ConfigError(f"{folder}: holds keys of another kind. {_RESTORE}")
        return cls(node, identity)

    def save(self, folder: Path) -> None:
        """Write the keys to `folder` for their owner alone."""
        for key, name in ((self.node, "node.key"), (self.identity, "identity.key")):
            content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_bytes(folder / name, content, mode=PRIVATE)


_RESTORE = "Restore it from a backup, or join again into a new folder."


@dataclass(frozen=True)
class Home:
    """A hospital node's folder; `make` writes one, `load` opens it."""

    directory: Path
    settings: NodeSettings

    @classmethod
    def make(
        cls,
        directory: Path,
        settings: NodeSettings,
        keys: Keys,
        *,
        ca: bytes,
        peers: Mapping[str, bytes],
        policy: str,
    ) -> Home:
        """Write a node's folder, whole or not at all, and return it.

        `ca` is a certificate in PEM, `peers` the identity keys of hospitals by name, `policy` policy.toml.
        Raises FileExistsError where `directory` holds anything, and OSError where it cannot be written.
        """
        with fresh_folder(directory) as folder:
            home = cls(folder, settings)
            keys.save(home.keys_folder)
            write_bytes(home.ca, ca)
            write_text(home.policy, policy)
            write_text(home.peers_file, to_toml(Pinned({name: Peer(key) for name, key in peers.items()})))
            for below in (home.state, home.logs):
                below.mkdir()
            write_text(home.settings_file, settings.to_toml())
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> Home:
        """Return the node in `directory`; ConfigError where there is none, or not all of one."""
        if not is_home(directory):
            raise ConfigError(
                f"{directory}: holds no hospital's node. Join a federation, or name its folder."
            )
        directory = directory.resolve()
        path = directory / "node.toml"
        home = cls(directory, validate(NodeSettings, read_toml(path), str(path)))
        if not home.ca.is_file():
            raise ConfigError(f"{home.ca}: is missing. {_RESTORE}")
        return home

    def with_settings(self, settings: NodeSettings) -> Home:
        """Write other settings to node.toml and return the home that has them."""
        write_text(self.settings_file, settings.to_toml())
        return Home(self.directory, settings)

    def keys(self) -> Keys:
        """Return the keys; ConfigError where one is missing or damaged."""
        return Keys.load(self.keys_folder)

    @cached_property
    def identity(self) -> Identity:
        """The hospital's signing key, as secure aggregation uses it."""
        return Identity(self.keys().identity.private_bytes_raw())

    def peers(self) -> Peers:
        """Return the other hospitals as they are pinned; ConfigError where the file is damaged."""
        return peers_of(self.peers_file)

    def roster(self, peers: Peers) -> Roster:
        """Return `peers` with the vouchers that count now, and this hospital itself."""
        return peers.roster(self.settings.site, self.identity, self.settings.federation)

    @property
    def origin(self) -> str:
        """The coordinator's address, e.g. https://meta.example.org:8443."""
        return origin(self.settings.host, self.settings.port)

    @property
    def settings_file(self) -> Path:
        """node.toml."""
        return self.directory / "node.toml"

    @property
    def keys_folder(self) -> Path:
        """Where the private keys lie."""
        return self.directory / "keys"

    @property
    def peers_file(self) -> Path:
        """peers.toml."""
        return self.directory / "peers.toml"

    @property
    def ca(self) -> Path:
        """The federation's CA certificate."""
        return self.directory / "ca.pem"

    @property
    def policy(self) -> Path:
        """What this hospital allows."""
        return self.directory / "policy.toml"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of this hospital's identity key, to be compared by telephone."""
        return fingerprint(self.identity.public)

    @property
    def logs(self) -> Path:
        """One file per background process."""
        return self.directory / "logs"

    @property
    def state(self) -> Path:
        """What must survive a restart."""
        return self.directory / "state"

    @property
    def book(self) -> Book:
        """Which rows are registered."""
        return Book(self.state / "rows" / "rows.json")

    @property
    def paused(self) -> bool:
        """Whether the node is to answer nothing for now."""
        return self._pause_flag.exists()

    def pause(self) -> None:
        """Let the node answer nothing until `unpause`; doing it twice is no harm."""
        self._pause_flag.touch()

    def unpause(self) -> None:
        """Let the node work again."""
        self._pause_flag.unlink(missing_ok=True)

    @property
    def _pause_flag(self) -> Path:
        return self.directory / "paused"


def is_home(directory: Path) -> bool:
    """Return whether a node's folder is there."""
    return (directory / "node.toml").is_file()


def _private_key(path: Path) -> object:
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"{path}: is missing or damaged. {_RESTORE}") from None
