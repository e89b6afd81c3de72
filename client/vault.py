"""Where a site keeps what it must not forget of secure aggregation: one SQLite file, one row a run.

Every transition reads and replaces its row within one exclusive transaction, and nothing is sent before the
transaction is on disk: two requests that race meet one after the other, and a process that is killed leaves
either the state before or the state after (`common.secagg.state`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.secagg import site, state
from common.secagg.site import Answer, Member
from common.secagg.state import SiteRun

WAIT = 60.0
"""Seconds to wait for another process's transaction."""
TABLE = "CREATE TABLE IF NOT EXISTS run (id TEXT PRIMARY KEY, state BLOB NOT NULL, at REAL NOT NULL)"
ABANDONED = 30 * 24 * 3600.0
"""Seconds after which a run that nobody asked about any more is finished: its secrets go."""


@dataclass(frozen=True)
class Vault:
    """The states of one site."""

    path: Path

    def change(
        self, run: str, member: Member, transition: Callable[[SiteRun], tuple[SiteRun, Answer]]
    ) -> Answer:
        """Return a transition's answer once its new state is on disk.

        A run that is not known yet is joined. SecAggError: it is finished, or the transition refuses; then
        nothing changes.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            row = database.execute("SELECT state FROM run WHERE id = ?", (run,)).fetchone()
            before = state.restore(row[0]) if row else site.join(member, run, int(time.time()))
            after, answer = transition(before)
            self._keep(database, run, state.save(after))
        return answer

    def finish(self, run: str) -> None:
        """Erase a run's secrets; its id is refused from now on."""
        with self._transaction() as database:
            self._finish(database, run)

    def tidy(self) -> None:
        """Finish runs that were abandoned long ago."""
        with self._transaction() as database:
            old = database.execute("SELECT id FROM run WHERE at < ?", (time.time() - ABANDONED,)).fetchall()
            for (run,) in old:
                self._finish(database, run)

    def _finish(self, database: sqlite3.Connection, run: str) -> None:
        row = database.execute("SELECT state FROM run WHERE id = ?", (run,)).fetchone()
        if row and not state.is_finished(row[0]):
            self._keep(database, run, state.save(site.finish(state.restore(row[0]))))

    def _keep(self, database: sqlite3.Connection, run: str, content: bytes) -> None:
        values = (run, content, time.time())
        database.execute("INSERT OR REPLACE INTO run (id, state, at) VALUES (?, ?, ?)", values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the database to one caller at a time; what it changed is on disk after, or not at all."""
        with closing(self._open()) as database:
            database.execute("BEGIN EXCLUSIVE")
            yield database
            database.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        new = not self.path.exists()
        database = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
        if new:
            self.path.chmod(0o600)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA secure_delete = ON")
        database.execute(TABLE)
        return database
