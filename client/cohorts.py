"""Over which hospitals this one's part was summed, and over which it may be again: tables beside its runs.

Two sums over hospitals that differ by one give that one away: exactly where the weights are the same or
where columns are summed, nearly where the weights have moved a little. So (docs/security.md, "Cohorts that
differ by one hospital"):

- the same weights are answered over the same hospitals only. Another round of the same training may meet
  them again over others: a slot that was given up leaves the weights as they were, and the next round asks
  who is left;
- a training, or sums over columns, over hospitals that are nearly those of an earlier one waits for the
  operator's word (`client.allow`); sums over columns do for any other hospitals at all;
- so many runs begin within a month, and no more; as many rehearsals beside them, which sum nothing;
- a run has so many slots that are masked in, whatever round their messages say they are of.

Hospitals are counted where their keys are confirmed: a name that the coordinator made up makes no difference.
Everything is decided and written down within the transaction that stores what is sent (`client.vault`).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cached_property

from client.policy import Policy, at_most
from common.errors import SecAggError
from common.secagg.encoding import digest
from common.secagg.identity import Peer
from common.secagg.messages import REHEARSAL, Payload
from common.secagg.reasons import WORDS, Reason, refusal
from common.wire import Instruction

TABLES = """
CREATE TABLE IF NOT EXISTS named (run TEXT PRIMARY KEY, cohort TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cohort (
    keys TEXT PRIMARY KEY, confirmed TEXT NOT NULL, summed REAL, allowed REAL, refused REAL
);
CREATE TABLE IF NOT EXISTS answered (
    weights BLOB NOT NULL, training TEXT NOT NULL, round INTEGER NOT NULL, holders BLOB NOT NULL,
    survivors BLOB, run TEXT NOT NULL, slot INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (weights, training, round)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS slot ON answered (run, slot);
CREATE TABLE IF NOT EXISTS masked (run TEXT PRIMARY KEY, slots INTEGER NOT NULL);
"""
"""`named`: whom the coordinator named when a run began. `cohort`: hospitals, when this one's part was first
summed over them, when its operator allowed them, when they were refused. `answered`: weights, with the
holders they were masked for and the survivors they were unmasked for. `masked`: in how many slots
of a run."""
A_MONTH = 30 * 24 * 3600.0
"""Seconds within which runs are counted."""
COLUMNS = b"sums over columns"
"""What stands for weights where columns are summed: the same answer whatever the weights."""


@dataclass(frozen=True)
class Cohort:
    """Hospitals by name, this one among them."""

    hospitals: Mapping[str, Peer]

    @cached_property
    def keys(self) -> str:
        """Names and keys as text: the same for the same hospitals."""
        return json.dumps({name: peer.public.hex() for name, peer in sorted(self.hospitals.items())})

    @cached_property
    def confirmed(self) -> str:
        """The names of those whose keys are confirmed, as text."""
        return json.dumps(sorted(name for name, peer in self.hospitals.items() if peer.trusted))

    @classmethod
    def read(cls, keys: str, confirmed: str) -> Cohort:
        """Return the cohort that `keys` and `confirmed` are of."""
        sure = json.loads(confirmed)
        return cls({name: Peer(bytes.fromhex(key), name in sure) for name, key in json.loads(keys).items()})

    def without(self, other: Cohort) -> list[str]:
        """Return the names of those who are not in another cohort, or not under this key."""
        known = {name: peer.public for name, peer in other.hospitals.items()}
        return sorted(name for name, peer in self.hospitals.items() if known.get(name) != peer.public)

    def differs(self, other: Cohort) -> int:
        """Return how many confirmed hospitals are in one of two cohorts only, or under two keys."""
        both = ((self, self.without(other)), (other, other.without(self)))
        return len({name for cohort, odd in both for name in odd if cohort.hospitals[name].trusted})

    def digest(self, sites: Iterable[str]) -> bytes:
        """Return what stands for some of the hospitals, with their keys."""
        return digest("cohort", tuple((name, self.hospitals[name].public) for name in sorted(sites)))


class Waits(SecAggError):  # noqa: N818 - not an error but a question to the operator
    """A cohort that waits for the operator's word."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        super().__init__(Reason.WAITS_FOR_ALLOW, WORDS[Reason.WAITS_FOR_ALLOW])


@dataclass(frozen=True)
class Question:
    """What decides an answer, as far as two answers are compared."""

    weights: bytes
    training: str
    server_round: int

    @property
    def exact(self) -> bool:
        """Whether columns are summed."""
        return self.weights == COLUMNS

    @classmethod
    def of(cls, instruction: Instruction, payload: Payload) -> Question:
        """Return the question of a train message."""
        if instruction.column_sums:
            return cls(COLUMNS, "", 0)
        return cls(payload.model, instruction.run, instruction.server_round)


@dataclass(frozen=True)
class Waiting:
    """A cohort that waits, and the earlier ones that it is too near to."""

    cohort: Cohort
    near: list[Cohort]
    at: float
    """When this was read, in Unix seconds: of what is summed over later, the operator was not told."""


@dataclass(frozen=True)
class Cohorts:
    """One hospital's memory, within a transaction of its vault."""

    database: sqlite3.Connection
    policy: Policy

    def begin(self, run: str, cohort: Cohort) -> None:
        """Let a run over these hospitals begin, or go on. PolicyError, SecAggError: it may not."""
        known = self._named(run)
        if known is None:
            self._count(run, "NOT GLOB")
            self.database.execute("INSERT INTO named (run, cohort) VALUES (?, ?)", (run, cohort.keys))
            self._write(cohort)
        elif known.keys != cohort.keys:
            raise refusal(Reason.NOT_NAMED)
        self._judge(cohort)

    def rehearse(self, run: str) -> None:
        """Let a rehearsal begin, or go on: as many as trainings, and beside them. PolicyError: it may not."""
        self._count(run, "GLOB")

    def review(self, run: str, question: Question, holders: Mapping[str, bytes]) -> None:
        """Raise SecAggError or PolicyError where this question may not be answered over these holders.

        None are given where the answer is what was sent before.
        """
        cohort = self._begun(run)
        if not holders:
            return
        at_most(self.policy.max_rounds, self._masked(run) + 1, "max-rounds")
        if {name: peer.public for name, peer in cohort.hospitals.items() if name in holders} != dict(holders):
            raise refusal(Reason.NOT_NAMED)
        self._judge(cohort)
        self._compare(cohort, question, "holders", cohort.digest(holders))

    def mask(self, run: str, slot: int, question: Question, holders: Mapping[str, bytes]) -> None:
        """Review, and write down that this question is answered over these holders."""
        self.review(run, question, holders)
        if not holders:
            return
        self.database.execute(
            "INSERT INTO masked (run, slots) VALUES (?, 1) ON CONFLICT DO UPDATE SET slots = slots + 1",
            (run,),
        )
        cohort, now = self._begun(run), time.time()
        since = self._allowed(cohort) if question.exact else 0.0
        summed = "UPDATE cohort SET summed = ? WHERE keys = ? AND summed IS NULL"
        self.database.execute(summed, (now, cohort.keys))
        self.database.execute(
            "INSERT INTO answered (weights, training, round, holders, run, slot, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " survivors = CASE WHEN holders = excluded.holders AND at > ? THEN survivors END,"
            " holders = excluded.holders, run = excluded.run, slot = excluded.slot, at = excluded.at",
            (*astuple(question), cohort.digest(holders), run, slot, now, since),
        )

    def unmask(self, run: str, slot: int, survivors: Iterable[str]) -> None:
        """Write down over whom a slot's sum opens. SecAggError: these weights were opened over others."""
        cohort = self._begun(run)
        row = self.database.execute(
            "SELECT weights, training, round FROM answered WHERE run = ? AND slot = ?", (run, slot)
        ).fetchone()
        if row is None:  # asked for again since, in another run or slot
            raise refusal(Reason.SLOT_CLOSED)
        opened = cohort.digest(survivors)
        self._compare(cohort, Question(*row), "survivors", opened)
        self.database.execute(
            "UPDATE answered SET survivors = ? WHERE weights = ? AND training = ? AND round = ?",
            (opened, *row),
        )

    def wait(self, cohort: Cohort) -> None:
        """Write down that these hospitals were refused; of cohorts that nothing came of, the last is kept."""
        self.database.execute(
            "DELETE FROM cohort WHERE summed IS NULL AND allowed IS NULL"
            " AND keys NOT IN (SELECT cohort FROM named)"
        )
        self._write(cohort)
        self.database.execute("UPDATE cohort SET refused = ? WHERE keys = ?", (time.time(), cohort.keys))

    def waiting(self) -> list[Waiting]:
        """Return what waits for the operator's word."""
        rows = self.database.execute(
            "SELECT keys, confirmed FROM cohort WHERE refused IS NOT NULL"
        ).fetchall()
        cohorts = [Cohort.read(*row) for row in rows]
        floor, now = self.policy.min_difference, time.time()
        return [Waiting(cohort, list(self._near(cohort, floor)), now) for cohort in cohorts]

    def allow(self, one: Waiting) -> None:
        """Give the operator's word: these hospitals may be summed over, whatever was when he was asked."""
        self.database.execute(
            "UPDATE cohort SET allowed = ?, refused = NULL WHERE keys = ?", (one.at, one.cohort.keys)
        )

    def _count(self, run: str, like: str) -> None:
        """Raise PolicyError where too many others within a month are `like` a rehearsal, or are not."""
        (count,) = self.database.execute(
            f"SELECT COUNT(*) FROM run WHERE id != ? AND at > ? AND id {like} ?",  # noqa: S608 - two words
            (run, time.time() - A_MONTH, f"{REHEARSAL}*"),
        ).fetchone()
        at_most(self.policy.max_trainings, count + 1, "max-trainings")

    def _masked(self, run: str) -> int:
        row = self.database.execute("SELECT slots FROM masked WHERE run = ?", (run,)).fetchone()
        return int(row[0]) if row else 0

    def _begun(self, run: str) -> Cohort:
        """Return whom the coordinator named when a run began."""
        cohort = self._named(run)
        if cohort is None:
            raise refusal(Reason.NOT_NAMED)
        return cohort

    def _named(self, run: str) -> Cohort | None:
        row = self.database.execute(
            "SELECT keys, confirmed FROM named JOIN cohort ON cohort = keys WHERE run = ?", (run,)
        ).fetchone()
        return Cohort.read(*row) if row else None

    def _write(self, cohort: Cohort) -> None:
        self.database.execute(
            "INSERT INTO cohort (keys, confirmed) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET confirmed = excluded.confirmed",
            (cohort.keys, cohort.confirmed),
        )

    def _judge(self, cohort: Cohort) -> None:
        if not self.policy.hold_out and any(self._near(cohort, self.policy.min_difference)):
            raise Waits(cohort)

    def _near(self, cohort: Cohort, floor: int) -> Iterator[Cohort]:
        """Yield cohorts summed over since the operator's last word that differ by fewer than `floor`."""
        rows = self.database.execute(
            "SELECT keys, confirmed FROM cohort WHERE keys != ? AND summed > ?",
            (cohort.keys, self._allowed(cohort)),
        )
        yield from (other for row in rows if cohort.differs(other := Cohort.read(*row)) < floor)

    def _allowed(self, cohort: Cohort) -> float:
        row = self.database.execute("SELECT allowed FROM cohort WHERE keys = ?", (cohort.keys,)).fetchone()
        return (row[0] if row else None) or 0.0

    def _compare(self, cohort: Cohort, question: Question, column: str, hospitals: bytes) -> None:
        """Raise SecAggError where the same weights were answered over other hospitals."""
        if self.policy.hold_out:
            return
        since = self._allowed(cohort) if question.exact else 0.0
        (others,) = self.database.execute(
            f"SELECT COUNT(*) FROM answered WHERE weights = ? AND at > ? AND {column} != ?"  # noqa: S608
            " AND NOT (training = ? AND round != ?)",
            (question.weights, since, hospitals, question.training, question.server_round),
        ).fetchone()
        if others:
            raise Waits(cohort) if question.exact else refusal(Reason.SAME_WEIGHTS)
