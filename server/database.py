"""The roster's SQLite file: its tables and their version; one transaction a change, safe for processes."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from common.errors import ConfigError
from common.files import PRIVATE

PATIENCE = 30.0
"""Seconds to wait for another process's transaction."""

_VERSIONS = (
    """
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
""",
    """
CREATE TABLE vouch (
    voucher TEXT COLLATE NOCASE,
    subject TEXT COLLATE NOCASE,
    serial INTEGER NOT NULL,
    signed BLOB NOT NULL,
    PRIMARY KEY (voucher, subject)
) STRICT, WITHOUT ROWID;
""",
    """
CREATE TABLE about (
    hospital TEXT PRIMARY KEY COLLATE NOCASE,
    said TEXT NOT NULL
) STRICT, WITHOUT ROWID;
""",
)
"""What each version adds to the one before; 0.1.0 wrote the first."""
VERSION = len(_VERSIONS)


class Database:
    """The file at `path`, made where there is none, and brought to this version where it is older."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE))
        with closing(self._connect()) as database:
            _log_ahead(database)
        with self.transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise ConfigError(
                    f"{path}: is a roster of version {version}, this software keeps version {VERSION}; "
                    "use the version of Zamenis that wrote it."
                )
            for added in _VERSIONS[version:]:
                for statement in added.split(";\n"):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
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
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield a database to read from."""
        with closing(self._connect()) as database:
            yield database

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        return database


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
