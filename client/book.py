"""Where a node keeps its record of rows (`client.rows`), and the last edition that it answered in.

rows.json        the record: keyed names alone, the owner's alone, replaced as a whole
rows.answered    the last edition that a message was answered in
rows.lock        held while either is written: registering and answering meet one after the other
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.rows import Group, Record, Row, Use
from common.errors import DataError
from common.files import PRIVATE, in_place, write_text
from common.machine import lock

FORMAT = 1
ANEW = "its rows were registered anew in the meantime; ask again."


@dataclass(frozen=True)
class Book:
    """A node's record of rows on disk."""

    path: Path
    """rows.json."""

    def load(self, *, edition: int | None = None) -> Record:
        """Return the record; an empty one where nothing was registered yet.

        DataError: it is damaged, or is of another edition than `edition`.
        """
        try:
            record = _record(json.loads(self.path.read_text(encoding="ascii")))
        except FileNotFoundError:
            record = Record()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path}: is damaged, and with it the memory of who was summed. Restore it from a "
                "backup; nothing is answered until then."
            ) from error
        if edition not in (None, record.edition):
            raise DataError(ANEW)
        return record

    def register(
        self, task: str, rows: Sequence[Row], *, floor: int, refused: Mapping[str, int] | None = None
    ) -> Record:
        """Register `task` over `rows`, write the record and return it.

        DataError: fewer than `floor` patients are on a side of the split; then nothing is written.
        """
        with self._locked():
            answered = self._answered()
            record = self.load().registered(task, rows, floor=floor, answered=answered, refused=refused)
            record.check_sides(task, rows, floor=floor)
            self._write(record)
        return record

    def leave(self, task: str) -> None:
        """Let `task` use no row, until it is registered again."""
        with self._locked():
            record = self.load()
            self._write(record.registered(task, (), floor=1, answered=self._answered()))

    def answer(self, edition: int) -> None:
        """Write down that a message is answered in `edition`. DataError: another was registered meanwhile."""
        if self._answered() >= edition:
            return
        with self._locked():
            self.load(edition=edition)
            write_text(self._mark, str(edition), mode=PRIVATE)

    @property
    def _mark(self) -> Path:
        return self.path.with_suffix(".answered")

    def _answered(self) -> int:
        try:
            return int(self._mark.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise DataError(f"{self._mark}: is damaged. Restore it from a backup.") from error

    def _write(self, record: Record) -> None:
        write_text(self.path, json.dumps(_told(record), separators=(",", ":")), mode=PRIVATE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.path.with_suffix(".lock"), "ab", opener=in_place) as file:
            lock(file.fileno())
            yield


def _told(record: Record) -> dict[str, Any]:
    """Return a record as plain values."""
    return {
        "format": FORMAT,
        "edition": record.edition,
        "groups": {
            number: [one.learned, one.cut, dict(one.contents), sorted(one.patients)]
            for number, one in record.groups.items()
        },
        "uses": {
            task: [use.groups, dict(use.targets), use.waiting, use.silent, dict(use.refused)]
            for task, use in record.uses.items()
        },
    }


def _record(told: dict[str, Any]) -> Record:
    if told["format"] != FORMAT:
        raise ValueError("another format")
    groups = {
        int(number): Group(learned, cut, contents, frozenset(patients))
        for number, (learned, cut, contents, patients) in told["groups"].items()
    }
    uses = {task: Use(tuple(numbers), *others) for task, (numbers, *others) in told["uses"].items()}
    return Record(int(told["edition"]), groups, uses)
