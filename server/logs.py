"""Where a run's log goes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from common.logs import OneLine


def log_to(path: Path) -> None:
    """Send our log to `path`, readable by its owner alone: a traceback may quote a file's values.

    It has what is said to whoever watches (`Aloud`), and INFO: what a person needs who looks for a cause.
    """
    path.touch(mode=0o600)
    logger = logging.getLogger("zamenis")
    logger.setLevel(logging.INFO)
    for handler in logger.handlers:
        handler.close()
    logger.handlers = [logging.FileHandler(path, encoding="utf-8")]
    logger.handlers[0].setFormatter(OneLine("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logger.propagate = False


def warnings_in(path: Path) -> list[tuple[str, str]]:
    """Return the time of day and the words of each warning in a log of ours, oldest first."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    return re.findall(r"^[\d-]+ ([\d:]+),\d+ zamenis\S* (?:WARNING|ERROR) (.*)$", text, re.MULTILINE)


class Aloud(logging.Handler):
    """Tells a run's warnings to whoever watches it: each once, in whatever round it comes."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the message, without its traceback."""
        words = record.getMessage()
        what = re.sub(r"^round \d+: ", "", words)
        if what not in self._told:
            self._told.add(what)
            self._tell(words)
