"""Where a run's log goes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path


def log_to(path: Path) -> None:
    """Send our log to `path`, readable by its owner alone: a traceback may quote a file's values."""
    path.touch(mode=0o600)
    logger = logging.getLogger("zamenis")
    for handler in logger.handlers:
        handler.close()
    logger.handlers = [logging.FileHandler(path, encoding="utf-8")]
    logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logger.propagate = False


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
