"""Where a site keeps what it must not forget of secure aggregation: one SQLite file, one row a run.

Every transition reads and replaces its row within one exclusive transaction, and nothing is sent before the
transaction is on disk: two requests that race meet one after the other, and a process that is killed leaves
either the state before or the state after (`common.secagg.state`).

The vault remembers which file it is and when it was last written. Another file, since SQLite changes a file
in place, or one that was changed later, means a copy or a restored backup: it may have forgotten what has
left the site, and every unfinished run goes on with a new key and without the slots that were open
(`site.rejoin`). A snapshot of a whole machine brings everything back alike; then an operator says so
(`zamenis-hospital rejoin`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client import cohorts
from client.cohorts import Cohorts
from client.policy import Policy
from common.errors import SecAggError
from common.files import PRIVATE
from common.secagg import site, state
from common.secagg.site import Answer, Member
from common.secagg.state import Finished, SiteRun

logger = logging.getLogger("zamenis.client")
WAIT = 60.0
"""Seconds to wait for another process's transaction."""
TABLES = """
CREATE TABLE IF NOT EXISTS run (id TEXT PRIMARY KEY, state BLOB NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS file (device TEXT NOT NULL, inode TEXT NOT NULL, at REAL NOT NULL);
"""
LATE = 60.0
"""Seconds by which the file system may date a transaction after the transaction's own time."""
ABANDONED = 30 * 24 * 3600.0
"""Seconds after which a run that nobody asked about any more is finished: its secrets go."""


@dataclass(frozen=True)
class Vault:
    """The states of one site."""

    path: Path

    def change(
        self,
        run: str,
        member: Member,
        transition: Callable[[SiteRun], tuple[SiteRun, Answer]],
        witness: Callable[[SiteRun, sqlite3.Connection], None] = lambda before, database: None,
    ) -> Answer:
        """Return a transition's answer once its new state, and what a `witness` writes down, is on disk.

        A run that is not known yet is joined. SecAggError: it is finished, or transition or witness refuses;
        then nothing changes.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            row = database.execute("SELECT state FROM run WHERE id = ?", (run,)).fetchone()
            before = state.restore(row[0]) if row else site.join(member, run, int(time.time()))
            after, answer = transition(before)
            witness(before, database)
            self._keep(database, run, state.save(after))
        return answer

    def finish(self, run: str) -> None:
        """Erase a run's secrets; its id is refused from now on."""
        with self._transaction() as database:
            self._finish(database, run)

    def rejoin(self) -> int:
        """Give every unfinished run a new key and no open slot, and return how many runs these are."""
        with self._transaction() as database:
            return self._rejoin(database)

    @contextmanager
    def cohorts(self, policy: Policy) -> Iterator[Cohorts]:
        """Yield the memory of cohorts; what was changed is on disk after."""
        with self._transaction() as database:
            yield Cohorts(database, policy)

    def tidy(self) -> None:
        """Finish runs that were abandoned long ago."""
        with self._transaction() as database:
            old = database.execute("SELECT id FROM run WHERE at < ?", (time.time() - ABANDONED,)).fetchall()
            for (run,) in old:
                self._finish(database, run)

    def _rejoin(self, database: sqlite3.Connection) -> int:
        unfinished = 0
        for run, content in database.execute("SELECT id, state FROM run").fetchall():
            if not state.is_finished(content):
                self._keep(database, run, state.save(_anew(run, content)))
                unfinished += 1
        return unfinished

    def _recognise(self, database: sqlite3.Connection) -> None:
        """Make sure that what is remembered was remembered in this very file, or rejoin once."""
        found = self.path.stat()
        row = database.execute("SELECT device, inode, at FROM file").fetchone()
        if row and row[:2] == _name(found) and found.st_ctime <= row[2] + LATE:
            return
        if unfinished := self._rejoin(database):
            logger.warning("vault.db is a copy or a restored backup: new keys for %d runs", unfinished)
        self._sign(database)
        database.execute("COMMIT")  # whatever becomes of the transition that found it
        database.execute("BEGIN EXCLUSIVE")

    def _sign(self, database: sqlite3.Connection) -> None:
        """Write down which file this is, and when."""
        database.execute("DELETE FROM file")
        values = (*_name(self.path.stat()), time.time())
        database.execute("INSERT INTO file (device, inode, at) VALUES (?, ?, ?)", values)

    def _finish(self, database: sqlite3.Connection, run: str) -> None:
        row = database.execute("SELECT state FROM run WHERE id = ?", (run,)).fetchone()
        if row and not state.is_finished(row[0]):
            self._keep(database, run, state.save(state.finished(run, row[0])))

    def _keep(self, database: sqlite3.Connection, run: str, content: bytes) -> None:
        values = (run, content, time.time())
        database.execute("INSERT OR REPLACE INTO run (id, state, at) VALUES (?, ?, ?)", values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the database to one caller at a time; what it changed is on disk after, or not at all."""
        with closing(self._open()) as database:
            database.execute("BEGIN EXCLUSIVE")
            self._recognise(database)
            yield database
            self._sign(database)
            database.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, PRIVATE))  # SQLite's journal takes after it
        database = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA secure_delete = ON")
        database.executescript(TABLES + cohorts.TABLES)
        return database


def _name(file: os.stat_result) -> tuple[str, str]:
    return str(file.st_dev), str(file.st_ino)


def _anew(run: str, content: bytes) -> SiteRun | Finished:
    """Return an unfinished run's state with a new key; its end where another version wrote it."""
    try:
        before = state.restore(content)
    except SecAggError:
        return state.finished(run, content)
    return site.rejoin(before, max(int(time.time()), before.epoch + 1))
