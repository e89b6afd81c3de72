"""Linux's Landlock: which files a process may touch from now on, and its children with it (landlock(7)).

Own code over three system calls: what PyPI has for them are first and pre-releases.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, of the same number on every machine."""
VERSION, PATH_BENEATH = 1, 1
NEEDED = 3
"""The first version in which a file that may not be written cannot be truncated either; Linux 6.2."""
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
EXECUTE = 1
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Rights that a rule on a single file may give."""
READ = READ_FILE | READ_DIR
HANDLED = {1: 2**13 - 1, 2: 2**14 - 1, 3: 2**15 - 1, 4: 2**15 - 1, 5: 2**16 - 1}
"""File rights that a version knows; those after the fifth know the same."""
SCOPED_FROM, SCOPED = 6, 3
"""From this version on: no abstract UNIX socket, and no signal to a process, outside."""


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version(libc: ctypes.CDLL) -> int:
    """Return Landlock's version in this kernel; 0 or less where it has none."""
    return int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION))


def restrict(libc: ctypes.CDLL, read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path]) -> bool:
    """Keep this process to these files and folders, for good; return whether the kernel does so in full.

    `write` may be read, changed and deleted, `devices` read, written and controlled; nothing may be executed.
    What does not exist, or cannot be opened by this user, is passed over.
    """
    has = version(libc)
    if has < 1:
        return False
    handled = HANDLED[min(has, 5)]
    scoped = SCOPED if has >= SCOPED_FROM else 0
    attributes = _Ruleset(handled, 0, scoped)
    ruleset = libc.syscall(CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    if ruleset < 0:
        return False
    try:
        whole = handled & ~(EXECUTE | IOCTL_DEV)
        rights = ((read, READ), (write, whole), (devices, READ | WRITE_FILE | IOCTL_DEV))
        for paths, allowed in rights:
            for path in paths:
                _allow(libc, ruleset, path, allowed & handled)
        return libc.syscall(RESTRICT_SELF, ruleset, 0) == 0 and has >= NEEDED
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, allowed: int) -> None:
    try:
        there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(there).st_mode):
            allowed &= FILE_RIGHTS
        rule = _PathBeneath(allowed, there)
        if libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0):
            raise OSError(ctypes.get_errno(), "Landlock takes no rule", str(path))
    finally:
        os.close(there)
