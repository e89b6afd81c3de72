"""Who belongs to the federation, and who vouches for whom (`server/database.py` has the file).

| a hospital is | after | then |
|---|---|---|
| invited | `admit` | `enrol`, `revoke`, or `admit` again, which voids the older token |
| pending | `enrol`, where the federation asks for approval | `accept`, `reject`, `revoke` |
| enrolled | `enrol`, or `accept` | `revoke` |
| rejected, revoked | `reject`, `revoke` | `admit`: another token, and other keys |

Of a token's secret only SHA-256 is kept. Names are compared without regard to case.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

from common.enrolment import About, Application, Code, refused
from common.errors import EnrolmentError
from common.invitation import new_secret
from common.names import check_name
from common.secagg.encoding import dump
from common.secagg.vouching import Vouch
from server.database import Database
from server.entry import COLUMNS, Entry, Status

_NO_SECRET = bytes(32)


class Roster:
    """The roster at `path`, made where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path)

    def admit(self, hospital: str, *, expires_at: int, now: float) -> bytes:
        """Return the secret of a new token for `hospital`; an older one that was not used is void.

        Raises EnrolmentError where the hospital is enrolled or pending, or known under another spelling.
        """
        try:
            check_name(hospital)
        except ValueError as error:
            raise EnrolmentError(f"{hospital!r}: a hospital's name {error}.") from None
        secret = new_secret()
        with self._database.transaction() as database:
            known = _find(database, hospital)
            if known:
                _refuse_readmission(known, hospital)
            database.execute(
                "INSERT OR REPLACE INTO hospital (hospital, status, secret_digest, expires_at, admitted_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (hospital, Status.INVITED, hashlib.sha256(secret).digest(), expires_at, now),
            )
        return secret

    def enrol(self, application: Application, *, now: float, approval: bool) -> Entry:
        """Return the hospital's entry, enrolled or (with `approval`) pending, for a proven application.

        The same keys with the same secret get the same answer again, since an answer may be lost.
        Raises EnrolmentRefused. Who does not know the secret learns nothing but `unknown`.
        """
        with self._database.transaction() as database:
            known = _find(database, application.hospital)
            if not _knows_secret(database, application):
                raise refused(Code.UNKNOWN)
            assert known is not None  # noqa: S101 - its secret was just compared
            _refuse_ended(known)
            keys = (application.node_key, application.identity_key)
            if known.status in (Status.ENROLLED, Status.PENDING):
                if (known.node_key, known.identity_key) != keys:
                    raise refused(Code.USED)
                return known
            if known.expired(now):
                raise refused(Code.EXPIRED)
            _take_keys(database, keys)
            status = Status.PENDING if approval else Status.ENROLLED
            database.execute(
                "UPDATE hospital SET status = ?, node_key = ?, identity_key = ?, applied_at = ?,"
                " settled_at = ? WHERE hospital = ?",
                (status, *keys, now, 0 if approval else now, known.hospital),
            )
            return _get(database, known.hospital)

    def accept(self, hospital: str, *, now: float) -> Entry:
        """Enrol a pending hospital."""
        return self._settle(hospital, {Status.PENDING}, Status.ENROLLED, now)

    def reject(self, hospital: str, *, now: float) -> Entry:
        """Turn a pending hospital away."""
        return self._settle(hospital, {Status.PENDING}, Status.REJECTED, now)

    def revoke(self, hospital: str, *, now: float) -> Entry:
        """End a hospital's part in the federation, or void its token. Its `node_id` stays to be told."""
        before = {Status.INVITED, Status.PENDING, Status.ENROLLED}
        entry = self._settle(hospital, before, Status.REVOKED, now)
        with self._database.transaction() as database:
            database.execute("DELETE FROM vouch WHERE ? IN (voucher, subject)", (entry.hospital,))
            database.execute("DELETE FROM about WHERE hospital = ?", (entry.hospital,))
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """Return every hospital in the order of names."""
        with self._database.reading() as database:
            rows = database.execute(f"SELECT {COLUMNS} FROM hospital ORDER BY hospital")  # noqa: S608
            return tuple(Entry.of(row) for row in rows)

    def by_node_id(self, node_id: int) -> Entry | None:
        """Return the hospital whose node Flower calls `node_id`, enrolled or not any more."""
        with self._database.reading() as database:
            row = database.execute(
                f"SELECT {COLUMNS} FROM hospital WHERE node_id = ? AND node_id != '0'",  # noqa: S608
                (str(node_id),),
            ).fetchone()
            return Entry.of(row) if row else None

    def is_enrolled(self, node_key: bytes) -> bool:
        """Return whether a node's public key (DER) is an enrolled hospital's."""
        with self._database.reading() as database:
            row = database.execute(
                "SELECT 1 FROM hospital WHERE node_key = ? AND status = ?", (node_key, Status.ENROLLED)
            ).fetchone()
            return row is not None

    def register(self, hospital: str, register_node: Callable[[bytes], int]) -> Entry:
        """Return an enrolled hospital's entry with Flower's number of its node, asked for once and kept.

        `register_node` makes a public key (DER) known to Flower and returns the number, the same for a key
        that is known there already. Nobody changes the roster meanwhile: a hospital that is revoked at the
        same moment is revoked before, and refused here, or after, and has a number to be taken out by.
        """
        with self._database.transaction() as database:
            known = _get(database, hospital)
            _refuse_ended(known)
            if known.status is not Status.ENROLLED:
                raise EnrolmentError(f"{hospital} is {known.status}: only an enrolled hospital has a node.")
            if known.node_id:
                return known
            database.execute(
                "UPDATE hospital SET node_id = ? WHERE hospital = ?",
                (str(register_node(known.node_key)), hospital),
            )
            return _get(database, hospital)

    def identity_keys(self) -> dict[str, bytes]:
        """Return every enrolled hospital's identity key by name."""
        enrolled = (entry for entry in self.entries() if entry.status is Status.ENROLLED)
        return {entry.hospital: entry.identity_key for entry in enrolled}

    def take_vouches(self, hospital: str, vouches: Iterable[Vouch]) -> None:
        """Keep what a hospital signed for others who are known here: its last word on each, and no more."""
        with self._database.transaction() as database:
            for one in vouches:
                known = _find(database, one.subject)
                last = database.execute(
                    "SELECT serial FROM vouch WHERE voucher = ? AND subject = ?", (hospital, one.subject)
                ).fetchone()
                if known and known.hospital == one.subject and (last is None or last[0] < one.serial < 2**63):
                    row = (hospital, one.subject, one.serial, dump(one))
                    database.execute("INSERT OR REPLACE INTO vouch VALUES (?, ?, ?, ?)", row)

    def take_about(self, hospital: str, about: About) -> None:
        """Keep what a hospital said last of itself."""
        with self._database.transaction() as database:
            row = (hospital, about.to_json().decode())
            database.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", row)

    def about(self) -> dict[str, About]:
        """Return what each hospital said last of itself, by name; who has said nothing yet is not there."""
        with self._database.reading() as database:
            rows = database.execute("SELECT hospital, said FROM about")
            return {hospital: About.model_validate_json(said) for hospital, said in rows}

    def vouches(self) -> tuple[bytes, ...]:
        """Return enrolled hospitals' words on each other, each in the canonical encoding."""
        with self._database.reading() as database:
            rows = database.execute(
                "SELECT signed FROM vouch JOIN hospital AS one ON one.hospital = voucher"
                " JOIN hospital AS other ON other.hospital = subject"
                " WHERE one.status = ? AND other.status = ? ORDER BY voucher, subject",
                (Status.ENROLLED, Status.ENROLLED),
            )
            return tuple(row[0] for row in rows)

    def _settle(self, hospital: str, before: set[Status], after: Status, now: float) -> Entry:
        with self._database.transaction() as database:
            known = _get(database, hospital)
            if known.status not in before:
                raise EnrolmentError(
                    f"{known.hospital} is {known.status}: it cannot become {after}. See `roster`."
                )
            database.execute(
                "UPDATE hospital SET status = ?, settled_at = ? WHERE hospital = ?", (after, now, hospital)
            )
            return _get(database, hospital)


def _refuse_ended(known: Entry) -> None:
    if known.status in (Status.REVOKED, Status.REJECTED):
        raise refused(Code(known.status))


def _refuse_readmission(known: Entry, hospital: str) -> None:
    if known.hospital != hospital:
        raise EnrolmentError(f"{hospital} is known as {known.hospital}; use that spelling or another name.")
    if known.status is Status.ENROLLED:
        raise EnrolmentError(f"{hospital} is enrolled. Revoke it first; its old node then ends.")
    if known.status is Status.PENDING:
        raise EnrolmentError(f"{hospital} has applied and waits. Accept or reject it first.")


def _knows_secret(database: sqlite3.Connection, application: Application) -> bool:
    """Return whether the application's secret is the hospital's, compared in constant time."""
    row = database.execute(
        "SELECT secret_digest FROM hospital WHERE hospital = ? COLLATE BINARY", (application.hospital,)
    ).fetchone()
    given = hashlib.sha256(application.secret).digest()
    return hmac.compare_digest(given, row[0] if row else _NO_SECRET) and row is not None


def _take_keys(database: sqlite3.Connection, keys: tuple[bytes, bytes]) -> None:
    """Remember keys for ever; refuse ones that were enrolled before, by anybody."""
    try:
        database.executemany("INSERT INTO known_key VALUES (?)", [(key,) for key in keys])
    except sqlite3.IntegrityError:
        raise refused(Code.KEY_TAKEN) from None


def _find(database: sqlite3.Connection, hospital: str) -> Entry | None:
    row = database.execute(
        f"SELECT {COLUMNS} FROM hospital WHERE hospital = ?",  # noqa: S608 - our own columns
        (hospital,),
    ).fetchone()
    return Entry.of(row) if row else None


def _get(database: sqlite3.Connection, hospital: str) -> Entry:
    found = _find(database, hospital)
    if found is None:
        raise EnrolmentError(f"{hospital}: there is no such hospital in the roster. See `roster`.")
    return found
