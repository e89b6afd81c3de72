"""A federation's folder at the coordinator: who it is, its certificates, its secrets, its roster.

```
federation.toml            name, host, port, approval
ca.pem                     what hospitals trust
server.pem, server.key     what the coordinator shows them
secrets/                   ca.key, control.secret, superexec.secret
roster.db, superlink.db    hospitals; Flower's own state
runs/, logs/
```
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from common.errors import ConfigError
from common.files import PRIVATE, fresh_folder, write_bytes, write_text
from common.invitation import Invitation, fingerprint_of
from common.names import Host, Name, Port
from common.sections import Section
from common.settings import read_toml, validate
from server.authority import Credentials, certify, expiry, new_authority, new_server, utc_now

SECRET_BYTES = 32


class Settings(Section):
    """federation.toml."""

    name: Name
    host: Host
    """The name or address by which hospitals reach the coordinator; the certificate names it."""
    port: Port = 8443
    approval: bool = False
    """Whether the coordinator's people accept each hospital after its token."""


@dataclass(frozen=True)
class Federation:
    """A federation's folder; `found` makes one, `load` opens it."""

    directory: Path
    settings: Settings

    @classmethod
    def load(cls, directory: Path) -> Federation:
        """Return the federation in `directory`; ConfigError where there is none, or not all of one."""
        if not (directory / "federation.toml").is_file():
            raise ConfigError(f"{directory}: holds no federation. Found one there, or name its folder.")
        directory = directory.resolve()
        path = directory / "federation.toml"
        federation = cls(directory, validate(Settings, read_toml(path), str(path)))
        lost = [file for file in federation._needed() if not file.is_file()]
        if lost:
            raise ConfigError(f"{lost[0]}: is missing. Restore the federation's folder from a backup.")
        return federation

    @property
    def name(self) -> str:
        """The federation's name."""
        return self.settings.name

    @property
    def host(self) -> str:
        """The coordinator's name or address."""
        return self.settings.host

    @property
    def port(self) -> int:
        """The coordinator's port."""
        return self.settings.port

    @property
    def approval(self) -> bool:
        """Whether a hospital waits for `accept` after its token."""
        return self.settings.approval

    @property
    def ca(self) -> Path:
        """The CA certificate."""
        return self.directory / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.directory / "server.pem"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.directory / "server.key"

    @property
    def ca_key(self) -> Path:
        """The CA's private key."""
        return self.directory / "secrets" / "ca.key"

    @property
    def control_secret(self) -> Path:
        """What this machine's commands show to the running coordinator."""
        return self.directory / "secrets" / "control.secret"

    @property
    def superexec_secret(self) -> Path:
        """What Flower's executor shows to the SuperLink."""
        return self.directory / "secrets" / "superexec.secret"

    @property
    def roster(self) -> Path:
        """The database of hospitals."""
        return self.directory / "roster.db"

    @property
    def superlink(self) -> Path:
        """The database of Flower's SuperLink."""
        return self.directory / "superlink.db"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.directory / "runs"

    @property
    def logs(self) -> Path:
        """One file per background process."""
        return self.directory / "logs"

    def invitation(self, hospital: str, secret: bytes, expires: int) -> Invitation:
        """Return the invitation that carries `secret` to `hospital`."""
        fingerprint = fingerprint_of(x509.load_pem_x509_certificate(self.ca.read_bytes()))
        return Invitation(self.name, hospital, self.host, self.port, fingerprint, secret, expires)

    def certificate_ends(self) -> datetime:
        """Return when the server's certificate ends."""
        return expiry(self.certificate.read_bytes())

    def renew(self, now: datetime | None = None) -> datetime:
        """Give the server's key a new certificate for the host in federation.toml; return when that ends.

        The CA and the key stay, so that hospitals notice nothing, and one file changes, whole.
        """
        authority = Credentials.load(self.ca.read_bytes(), self.ca_key.read_bytes())
        server = Credentials.load(self.certificate.read_bytes(), self.key.read_bytes())
        renewed = certify(authority, server.key.public_key(), self.host, now or utc_now())
        write_bytes(self.certificate, Credentials(renewed, server.key).certificate_pem)
        return renewed.not_valid_after_utc

    def _needed(self) -> tuple[Path, ...]:
        secret = (self.ca_key, self.control_secret, self.superexec_secret)
        return (self.ca, self.certificate, self.key, *secret)


def found(directory: Path, name: str, host: str, port: int, *, approval: bool = False) -> Federation:
    """Make a federation in `directory`, whole or not at all, and return it.

    Raises ConfigError where a name breaks its rule, or the folder holds something already.
    """
    tree = {"name": name, "host": host, "port": port, "approval": approval}
    settings = validate(Settings, tree, "federation")
    if (directory / "federation.toml").exists():
        raise ConfigError(f"{directory}: holds a federation already. Name another folder.")
    try:
        with fresh_folder(directory) as folder:
            _furnish(Federation(folder, settings), utc_now())
    except FileExistsError:
        raise ConfigError(f"{directory}: is not empty. Name a new folder.") from None
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be made there ({error.strerror}). Name another.") from error
    return Federation.load(directory)


def _furnish(federation: Federation, now: datetime) -> None:
    authority = new_authority(federation.name, now)
    server = new_server(authority, federation.host, now)
    write_text(federation.directory / "federation.toml", federation.settings.to_toml())
    write_bytes(federation.ca, authority.certificate_pem)
    write_bytes(federation.certificate, server.certificate_pem)
    for path, content in (
        (federation.ca_key, authority.key_pem),
        (federation.key, server.key_pem),
        (federation.control_secret, secrets.token_bytes(SECRET_BYTES)),
        (federation.superexec_secret, secrets.token_bytes(SECRET_BYTES)),
    ):
        write_bytes(path, content, mode=PRIVATE)
    for folder in (federation.runs, federation.logs):
        folder.mkdir()
