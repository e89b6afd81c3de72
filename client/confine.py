"""What a process that computes for a coordinator may not do: reach a network, other programs, other files.

Three walls of Linux, each of which an ordinary user can build: a network namespace without any network
(which a container may forbid), seccomp (`client.seccomp`) and Landlock (`client.landlock`). A wall that this
machine does not have is named aloud (`Walls.missing`), and the others stand.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from client import landlock, seccomp

NEW_USER, NEW_NET = 0x10000000, 0x40000000
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
"""Constants of Linux's unshare(2) and prctl(2)."""
CAPABILITIES_VERSION, READ_ANY_FILE = 0x20080522, 0b110
"""Of capset(2); what root keeps is CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, within Landlock's bounds."""
PLAIN_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
OWN_THREADS = Path("/proc/self/task")
"""CUDA writes its threads' names there, and does not start where it cannot."""


@dataclass(frozen=True)
class Walls:
    """Which walls stand around a process."""

    namespace: bool
    """It has a network of its own, with nothing in it."""
    calls: bool
    """It opens no connection and calls into no other process (seccomp)."""
    files: bool
    """It touches no files but those that it was given (Landlock)."""

    @property
    def missing(self) -> str:
        """Return what the process is not kept from; empty: from nothing that it should be."""
        open_ways = {
            "networks": not (self.namespace or self.calls),
            "other programs' sockets": not self.calls,
            "this user's other files": not self.files,
        }
        return ", ".join(way for way, is_open in open_ways.items() if is_open)


def confine(read: Iterable[Path], write: Iterable[Path]) -> Walls:
    """Confine this process, for good, to these files, of which `write` may be changed, and to computing.

    To be called before threads are started: each wall is built around one thread and those that it starts.
    Pipes and files that are open already stay open.
    """
    if not sys.platform.startswith("linux"):
        return Walls(namespace=False, calls=False, files=False)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.setsid()  # away from the terminal of whoever started the node, which it may still have open
    alone = NEW_NET if os.geteuid() == 0 else NEW_USER | NEW_NET
    namespace = any(libc.unshare(flags) == 0 for flags in (alone, NEW_USER | NEW_NET))
    devices, shared = _devices()
    files = landlock.restrict(libc, read, [*write, *shared], devices)
    _drop_capabilities(libc)
    return Walls(namespace, seccomp.restrict(libc), files)


def _devices() -> tuple[list[Path], list[Path]]:
    """Return the devices that computing takes, and where there are GPUs what their driver writes to."""
    gpus = [*Path("/dev").glob("nvidia*"), *Path("/dev").glob("dri")]
    plain = [Path(device) for device in PLAIN_DEVICES]
    if not gpus:
        return plain, []
    os.open(OWN_THREADS, os.O_PATH)  # stays open: the rule holds for the folder as it is now
    return [*plain, *gpus], [Path("/dev/shm"), OWN_THREADS]  # noqa: S108


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up every capability, which root has and a new user namespace gives, but to read files."""
    kept = READ_ANY_FILE if os.geteuid() == 0 else 0
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    libc.capset(header, sets)
