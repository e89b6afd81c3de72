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

    def lock_now(file: int) -> bool:
        """Take the lock on an open file where nobody holds it; return whether that was so."""
        os.lseek(file, 0, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(file: int) -> None:
        """Let a lock go, though a copy of the file may stay open in another process."""
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def lock(file: int) -> None:
        """Wait until nobody else holds the lock on an open file, and take it until the file is closed."""
        fcntl.flock(file, fcntl.LOCK_EX)

    def lock_now(file: int) -> bool:
        """Take the lock on an open file where nobody holds it; return whether that was so."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def unlock(file: int) -> None:
        """Let a lock go, though a copy of the file may stay open in another process."""
        fcntl.flock(file, fcntl.LOCK_UN)


def hide_gpus() -> None:
    """Let this process see no GPU: PyTorch's optimisers look for one at each step, also on the CPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def cores() -> int:
    """Return how many processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
