"""What differs between systems: locks on files, and how many processors there are."""

from __future__ import annotations

import os
import sys

FORKS = hasattr(os, "fork")
"""Whether a process can be divided; on Windows none can."""

if sys.platform == "win32":
    import msvcrt

    def lock(file: int) -> None:
        """Wait until nobody else holds the lock on an open file, and take it until the file is closed."""
        while True:
            try:
                os.lseek(file, 0, os.SEEK_SET)
                msvcrt.locking(file, msvcrt.LK_LOCK, 1)
            except OSError:  # it gives up after ten tries, a second apart
                continue
            return

else:
    import fcntl

    def lock(file: int) -> None:
        """Wait until nobody else holds the lock on an open file, and take it until the file is closed."""
        fcntl.flock(file, fcntl.LOCK_EX)


def cores() -> int:
    """Return how many processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
