"""Linux's seccomp: which system calls a process may make from now on, and its children with it (seccomp(2)).

Own code over one prctl: the packages on PyPI need a C library that pip does not bring, or are first releases.
What is refused fails with EPERM, as if the user had no right to it; everything else is as ever.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from collections.abc import Iterator

SET_SECCOMP, FILTER_MODE = 22, 2
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of classic BPF, on 32-bit words."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`; the first argument's lower half is at `ARGUMENTS` (little-endian)."""
AF_UNIX = 1
OTHER_ABI = 0x40000000
"""From this number on x86-64's calls are those of x32."""

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SOCKET, SEND_TO = {"x86_64": 41, "aarch64": 198}, {"x86_64": 44, "aarch64": 206}
IOCTL, TYPE_A_KEY, TERMINAL = {"x86_64": 16, "aarch64": 29}, 0x5412, 0x541C
"""ioctl(2) and two of its requests (TIOCSTI, TIOCLINUX): what they type, whoever reads the terminal runs."""
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # to another process's socket, or around this filter
    "connect": (42, 203),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # into another process, or another program
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # to another process by the system's shared memory, message queues and semaphores
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "semget": (64, 190),
    "semop": (65, 193),
    "mq_open": (240, 180),
    "execve": (59, 221),
    "execveat": (322, 281),
    # around file rules: what Landlock does not see
    "open_by_handle_at": (304, 265),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    # the kernel's keys, other namespaces, and the kernel itself
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
}
"""System calls by name, with their numbers on x86-64 and on 64-bit ARM; None: not there."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def restrict(libc: ctypes.CDLL) -> bool:
    """Keep this process from all calls in `REFUSED`, from sockets but UNIX's own pairs, from typing keys.

    Needs `no_new_privs`. Returns False, with nothing restricted, where machine or kernel have no filters.
    """
    machine = platform.machine()
    if machine not in AUDIT:
        return False
    instructions = [_Instruction(*one) for one in _filter(machine)]
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(instructions), array)
    return int(libc.prctl(SET_SECCOMP, FILTER_MODE, ctypes.byref(program), 0, 0)) == 0


def _filter(machine: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield the filter: a call's number is compared with each; what no line refuses is allowed."""
    refuse = (RETURN, 0, 0, REFUSE)
    yield (LOAD, 0, 0, ARCHITECTURE)
    yield (JUMP_EQUAL, 1, 0, AUDIT[machine])
    yield refuse
    yield (LOAD, 0, 0, NUMBER)
    yield (JUMP_AT_LEAST, 0, 1, OTHER_ABI)
    yield refuse
    for numbers in REFUSED.values():
        number = numbers[list(AUDIT).index(machine)]
        if number is not None:
            yield (JUMP_EQUAL, 0, 1, number)
            yield refuse
    yield (JUMP_EQUAL, 0, 5, IOCTL[machine])
    yield (LOAD, 0, 0, ARGUMENTS + 8)
    yield (JUMP_EQUAL, 1, 0, TYPE_A_KEY)
    yield (JUMP_EQUAL, 0, 1, TERMINAL)
    yield refuse
    yield (RETURN, 0, 0, ALLOW)
    yield (JUMP_EQUAL, 0, 3, SOCKET[machine])
    yield (LOAD, 0, 0, ARGUMENTS)
    yield (JUMP_EQUAL, 7, 0, AF_UNIX)  # to ALLOW, below
    yield refuse
    yield (JUMP_EQUAL, 0, 5, SEND_TO[machine])
    yield (LOAD, 0, 0, ARGUMENTS + 4 * 8)  # a fifth argument is an address, which `send` has not
    yield (JUMP_EQUAL, 0, 2, 0)
    yield (LOAD, 0, 0, ARGUMENTS + 4 * 8 + 4)  # whose upper half alone may tell it from none
    yield (JUMP_EQUAL, 1, 0, 0)
    yield refuse
    yield (RETURN, 0, 0, ALLOW)
