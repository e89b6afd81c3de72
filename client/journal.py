"""What a pass over a hospital's files has read so far, on disk, so that one that was killed goes on there.

    <cache>/fresh.pixels    float32 rows, one after the other
    <cache>/fresh.jsonl     a line for each file that was read: its name, and what is known of it

Pixels are on the disk before the lines that speak of them, and a line that was cut off is none: whatever the
moment of the end, a line's pixels are whole. One pass at a time has the journal of a cache; another that runs
at the same time keeps its rows to itself.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from common.files import in_place
from common.machine import lock_now, unlock

BETWEEN = 5.0
"""Seconds of work that a kill may cost."""


class Journal:
    """Rows of pixels and lines about files, of one cache at one `stamp`."""

    def __init__(self, folder: Path, shape: Sequence[int], stamp: str) -> None:
        self._shape = tuple(shape)
        self._bytes = 4 * int(np.prod(self._shape))
        self._stamp = stamp
        self._lines: BinaryIO | None = None
        self.found: dict[str, tuple[int, list[Any]]] = {}
        """What an earlier pass left, by name: the row of its pixels here, or -1, and what is known."""
        opened = _open(folder / "fresh.jsonl")
        if _locked(opened):
            with ExitStack() as unless_whole:
                unless_whole.enter_context(opened)
                self._lines, self._pixels = opened, _open(folder / "fresh.pixels")
                unless_whole.pop_all()
            self._recover()
        else:
            opened.close()
            self._pixels = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - `close` does
        self.rows: int = self._pixels.seek(0, os.SEEK_END) // self._bytes
        self._waiting: list[tuple[str, int, Sequence[Any]]] = []
        self._due = time.monotonic() + BETWEEN

    def append(self, row: bytes) -> int:
        """Keep a row of pixels and return its number."""
        self._pixels.write(row)
        self.rows += 1
        return self.rows - 1

    def note(self, name: str, row: int, known: Sequence[Any]) -> None:
        """Keep what is known of a file, and its row; every few seconds all of it reaches the disk."""
        self._waiting.append((name, row, known))
        if time.monotonic() > self._due:
            self.sync()

    def sync(self) -> None:
        """Write down all that waits, pixels first."""
        if self._lines is None:
            return
        self._pixels.flush()
        os.fsync(self._pixels.fileno())
        if not self._lines.seek(0, os.SEEK_END):
            self._lines.write(self._stamp.encode() + b"\n")
        for line in self._waiting:
            self._lines.write(json.dumps(line).encode() + b"\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._waiting = []
        self._due = time.monotonic() + BETWEEN

    def array(self) -> NDArray[np.float32]:
        """Return the rows, memory-mapped."""
        self._pixels.flush()
        if not self.rows:
            return np.empty((0, *self._shape), np.float32)
        return np.memmap(self._pixels, np.float32, "r", shape=(self.rows, *self._shape))

    def clear(self) -> None:
        """Forget everything: the cache has it now."""
        self._waiting, self.found, self.rows = [], {}, 0
        for file in (self._lines, self._pixels):  # no line may outlive its pixels, whose place others take
            if file is not None and file.seek(0, os.SEEK_END):
                file.truncate(0)

    def close(self, *, failed: bool) -> None:
        """Let the journal go; what waits is written down where the pass did not come to its end."""
        with suppress(OSError):
            if failed:
                self.sync()
        self._pixels.close()
        if self._lines is not None:
            unlock(self._lines.fileno())
            self._lines.close()

    def _recover(self) -> None:
        """Read what an earlier pass left; whatever does not fit is forgotten."""
        assert self._lines is not None  # noqa: S101 - only who has the journal recovers
        self._lines.seek(0)
        first, *lines = self._lines.read().splitlines(keepends=True) or [b""]
        if first != self._stamp.encode() + b"\n":
            self.clear()
            return
        room, whole = self._pixels.seek(0, os.SEEK_END) // self._bytes, len(first)
        with suppress(ValueError, TypeError, IndexError):
            for line in lines:
                name, row, known = json.loads(line)
                if row >= room or not line.endswith(b"\n"):
                    break
                self.found[str(name)] = int(row), list(known)
                whole += len(line)
        self._lines.truncate(whole)  # what is noted next may take the rows of the rest
        self._pixels.truncate(room * self._bytes)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, open(path, "a+b", opener=in_place))


def _locked(file: BinaryIO) -> bool:
    """Lock a file; False where another pass has it, and not just a child that outlives one by a moment."""
    deadline = time.monotonic() + 1.0
    while not lock_now(file.fileno()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
