"""One hospital of the roster."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from common.identity import fingerprint

COLUMNS = "hospital, status, expires_at, node_key, identity_key, node_id, admitted_at, applied_at, settled_at"
"""What an entry tells of the database's table; Flower's number is text there, above SQLite's integers."""


class Status(StrEnum):
    """Where a hospital stands."""

    INVITED = "invited"
    PENDING = "pending"
    ENROLLED = "enrolled"
    REJECTED = "rejected"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Entry:
    """One hospital. Times are unix seconds, 0 where it has not happened."""

    hospital: str
    status: Status
    expires_at: int
    """When its token ends."""
    node_key: bytes
    """DER, empty before the hospital enrolled."""
    identity_key: bytes
    """Raw Ed25519, empty before the hospital enrolled."""
    node_id: int
    """Flower's number of the node, 0 before it is registered there."""
    admitted_at: float
    applied_at: float
    settled_at: float
    """When it was enrolled, rejected or revoked."""

    @classmethod
    def of(cls, row: tuple[str, str, int, bytes, bytes, str, float, float, float]) -> Entry:
        """Return the entry that a row of `COLUMNS` says."""
        hospital, status, expires_at, node_key, identity_key, node_id, *times = row
        return cls(hospital, Status(status), expires_at, node_key, identity_key, int(node_id), *times)

    @property
    def fingerprint(self) -> str:
        """The identity key's fingerprint for people; empty before the hospital enrolled."""
        return fingerprint(self.identity_key) if self.identity_key else ""

    def expired(self, now: float) -> bool:
        """Return whether this is an invitation that can no longer be used."""
        return self.status is Status.INVITED and now >= self.expires_at
