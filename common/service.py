"""Background processes for the command lines: start, stop, look; at most one of a name in a folder. POSIX.

A running service holds a lock (flock) on `folder`/NAME.pid, which the kernel drops when its process ends,
however it ends. A file that is there but not locked is stale. The file is written and locked before it
takes that name, so that whoever sees it locked sees the right process in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":  # whose users are told that there are no services there
    import fcntl

from common.errors import ConfigError, ServiceError
from common.files import PRIVATE, locked_folder

STARTING = 120.0
"""Seconds in which a service must have taken its lock."""
_TICK = 0.05
_held: set[int] = set()
"""Locked descriptors of this process. A fork's copy would hold the lock on, so a fork closes it."""


def _forget_in_fork() -> None:
    while _held:
        os.close(_held.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_in_fork)


def own_command(name: str) -> str:
    """Return the path of our command `name`, for a process of its own; ConfigError where it is missing."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or sys.argv[0]
    if not Path(found).is_file():
        raise ConfigError(f"{name} is not installed; pip install it, or use start --foreground.")
    return found


def start(argv: Sequence[str], *, folder: Path, name: str) -> int:
    """Start `argv` in the background and return its process number once it holds its lock.

    It leads its own session and writes to `folder`/logs/NAME.log. Raises ServiceError where it runs
    already, cannot be started, or ends before it called `hold`.
    """
    running = status(folder, name)
    if running:
        raise ServiceError(f"{name} runs already, as process {running}. Stop it first.")
    program = shutil.which(argv[0])
    if program is None:
        raise ServiceError(f"{argv[0]}: there is no such program. Install Zamenis again.")
    log = folder / "logs" / f"{name}.log"
    try:
        pid = _spawn(program, argv, log)
    except OSError as error:
        raise ServiceError(f"{name} cannot be started, with its log in {log} ({error.strerror}).") from error
    _await_lock(pid, folder, name, log)
    return pid


def stop(folder: Path, name: str, patience: float = 60.0) -> bool:
    """End the service, after `patience` seconds by force with its whole process group; return whether it ran.

    Returns once its lock is free. Raises ServiceError where another user runs it.
    """
    running = status(folder, name)
    if not running:
        return False
    try:
        os.kill(running, signal.SIGTERM)
        if not _gone(folder, name, running, patience):
            _kill(running)
            _gone(folder, name, running, patience)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise ServiceError(f"{name} is another user's process, {running}. Stop it as that user.") from error
    return True


def status(folder: Path, name: str) -> int | None:
    """Return the number of the process that runs as `name` in `folder`, or nothing where none does."""
    try:
        file = os.open(_pid_file(folder, name), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(file, 32))
    else:
        return None
    finally:
        os.close(file)


@contextmanager
def hold(folder: Path, name: str) -> Iterator[None]:
    """Be the service `name` of `folder` for as long as the context lasts; ServiceError where one runs."""
    path = _pid_file(folder, name)
    with locked_folder(folder):
        running = status(folder, name)
        if running:
            raise ServiceError(f"{name} runs already, as process {running}. Stop it first.")
        file = _locked_file(path)
    try:
        yield
    finally:
        if file in _held:
            path.unlink(missing_ok=True)
            _held.discard(file)
            os.close(file)


def systemd_unit(description: str, argv: Sequence[str], folder: Path, also: Sequence[Path] = ()) -> str:
    """Return a systemd unit that runs `argv` as the owner of `folder`.

    It may write there and to the folders `also`, where they exist as it starts, and nowhere else.
    """
    folder = folder.resolve()
    command = " ".join(_quoted(word) for word in argv)
    writable = " ".join(_quoted(f"-{path.resolve()}", dollar=False) for path in (folder, *also))
    return f"""\
[Unit]
Description={description.replace("%", "%%")}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User={folder.owner()}
ExecStart={command}
Restart=on-failure
RestartSec=5
TimeoutStopSec=90
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def _pid_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"


def _spawn(program: str, argv: Sequence[str], log: Path) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        program,
        list(argv),
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, PRIVATE),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _locked_file(path: Path) -> int:
    """Return a locked descriptor of `path`, which names this process from the moment it is there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(file, f"{os.getpid()}\n".encode())
        temporary.replace(path)
    except OSError:
        os.close(file)
        temporary.unlink(missing_ok=True)
        raise
    _held.add(file)
    return file


def _await_lock(pid: int, folder: Path, name: str, log: Path) -> None:
    """Return once process `pid` holds the lock; ServiceError where it ends before, or takes too long."""
    deadline = time.monotonic() + STARTING
    while status(folder, name) != pid:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            raise ServiceError(f"{name} ended at once (code {os.waitstatus_to_exitcode(code)}). See {log}.")
        if time.monotonic() > deadline:
            _kill(pid)
            os.waitpid(pid, 0)
            raise ServiceError(f"{name} was not ready after {STARTING:.0f} seconds. See {log}.")
        time.sleep(_TICK)


def _gone(folder: Path, name: str, pid: int, patience: float) -> bool:
    """Return whether the process drops the lock within `patience` seconds."""
    deadline = time.monotonic() + patience
    while status(folder, name) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(_TICK)
    return True


def _kill(pid: int) -> None:
    """End the process by force, with its group where it leads one."""
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def _quoted(word: str, *, dollar: bool = True) -> str:
    """Return `word` as one word of a unit file (systemd.service(5), quoting; systemd.unit(5), specifiers)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if dollar else escaped}"'
