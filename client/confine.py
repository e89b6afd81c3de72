"""What a process that computes for a coordinator may not do: reach a network, gain rights, outlive its node.

Linux only, and only as far as the platform lets an ordinary user: a container may forbid namespaces.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

NEW_USER, NEW_NET = 0x10000000, 0x40000000
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
"""Constants of Linux's unshare(2) and prctl(2)."""


def confine() -> bool:
    """Confine this process, for good; return whether it is now cut off from every network.

    To be called before threads are started: a new user namespace needs a process with one thread. Pipes
    and sockets that are open already stay open.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    alone = NEW_NET if os.geteuid() == 0 else NEW_USER | NEW_NET
    return any(libc.unshare(flags) == 0 for flags in (alone, NEW_USER | NEW_NET))
