"""Where a run's log goes."""

from __future__ import annotations

import logging
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
