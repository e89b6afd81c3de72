"""Who belongs to the federation: one SQLite file, one transaction a change, safe for several processes.

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
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from common.enrolment import Application, Code, refused
from common.errors import ConfigError, EnrolmentError
from common.files import PRIVATE
from common.identity import roster_digest
from common.invitation import new_secret
from common.names import check_name
from server.entry import COLUMNS, Entry, Status

VERSION = 1
PATIENCE = 30.0
"""Seconds to wait for another process's transaction."""
_NO_SECRET = bytes(32)

_SCHEMA = """
CREATE TABLE hospital (
    hospital TEXT PRIMARY KEY COLLATE NOCASE,
    status TEXT NOT NULL,
    secret_digest BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    node_key BLOB NOT NULL DEFAULT x'',
    identity_key BLOB NOT NULL DEFAULT x'',
    node_id TEXT NOT NULL DEFAULT '0',
    admitted_at REAL NOT NULL,
    applied_at REAL NOT NULL DEFAULT 0,
    settled_at REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE known_key (key BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
_COLUMNS = (
    "hospital, status, expires_at, node_key, identity_key, node_id, admitted_at, applied_at, settled_at"
)


class Roster:
    """The roster at `path`, made where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE))
        with closing(self._connect()) as database:
            _log_ahead(database)
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise ConfigError(
                    f"{path}: is a roster of version {version}, this software keeps version {VERSION}; "
                    "use the version of Zamenis that wrote it."
                )

    def admit(self, hospital: str, *, expires_at: int, now: float) -> bytes:
        """Return the secret of a new token for `hospital`; an older one that was not used is void.

        Raises EnrolmentError where the hospital is enrolled or pending, or known under another spelling.
        """
        try:
            check_name(hospital)
        except ValueError as error:
            raise EnrolmentError(f"{hospital!r}: a hospital's name {error}.") from None
        secret = new_secret()
        with self._transaction() as database:
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
        with self._transaction() as database:
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
        return self._settle(hospital, {Status.INVITED, Status.PENDING, Status.ENROLLED}, Status.REVOKED, now)

    def entries(self) -> tuple[Entry, ...]:
        """Return every hospital in the order of names."""
        with self._reading() as database:
            rows = database.execute(f"SELECT {COLUMNS} FROM hospital ORDER BY hospital")  # noqa: S608
            return tuple(Entry.of(row) for row in rows)

    def by_node_id(self, node_id: int) -> Entry | None:
        """Return the hospital whose node Flower calls `node_id`, enrolled or not any more."""
        with self._reading() as database:
            row = database.execute(
                f"SELECT {COLUMNS} FROM hospital WHERE node_id = ? AND node_id != '0'",  # noqa: S608
                (str(node_id),),
            ).fetchone()
            return Entry.of(row) if row else None

    def register(self, hospital: str, register_node: Callable[[bytes], int]) -> Entry:
        """Return an enrolled hospital's entry with Flower's number of its node, asked for once and kept.

        `register_node` makes a public key (DER) known to Flower and returns the number, the same for a key
        that is known there already. Nobody changes the roster meanwhile: a hospital that is revoked at the
        same moment is revoked before, and refused here, or after, and has a number to be taken out by.
        """
        with self._transaction() as database:
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

    @property
    def digest(self) -> str:
        """The fingerprint of all enrolled hospitals and their keys, which operators compare."""
        return roster_digest(self.identity_keys())

    def _settle(self, hospital: str, before: set[Status], after: Status, now: float) -> Entry:
        with self._transaction() as database:
            known = _get(database, hospital)
            if known.status not in before:
                raise EnrolmentError(f"{known.hospital} is {known.status}: it cannot become {after}.")
            database.execute(
                "UPDATE hospital SET status = ?, settled_at = ? WHERE hospital = ?", (after, now, hospital)
            )
            return _get(database, hospital)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        return database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield a database that nobody else changes meanwhile; its changes stand whole or not at all."""
        with closing(self._connect()) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as database:
            yield database


def _log_ahead(database: sqlite3.Connection) -> None:
    """Have changes written to a log first; SQLite does not wait by itself for others who ask for the same."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


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
