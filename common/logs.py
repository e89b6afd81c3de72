"""Entries of a log that stay entries, whoever's words are in them: one line each, printable, not too long."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

LONGEST = 4000
"""Characters of an entry, and of a traceback below it: its last ones."""


class OneLine(logging.Formatter):
    """Writes a message on one line, so that nobody's words in it look like another entry."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """Return the entry before its traceback, which stands on lines of its own."""
        entry = super().formatMessage(record)[: 2 * LONGEST]
        return _shown(" ".join(entry.splitlines()))[:LONGEST]

    def formatException(  # noqa: N802 - as above
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """Return a traceback, every line of it printable."""
        return "\n".join(map(_shown, super().formatException(ei)[-LONGEST:].splitlines()))


def _shown(line: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def log_aloud(form: str) -> None:
    """Let this process's log go to stderr: warnings of libraries, and what of ours a person should know."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(form))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("zamenis").setLevel(logging.INFO)
