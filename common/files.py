"""Writing files that matter: a temporary file beside the target, fsync, rename."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import DataError
from common.machine import lock

SHARED, PRIVATE = 0o666, 0o600
"""Modes of a new file, before the process's umask: as others may read it, or its owner alone."""


@contextmanager
def atomic(path: Path, *, mode: int = SHARED) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it replaces `path`, on any failure nothing is left.

    An OSError of writing names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if (error.filename2 or error.filename or temporary) in (temporary, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, mode: int = SHARED) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, mode: int = SHARED) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode(), mode=mode)


def in_place(path: str, flags: int) -> int:
    """Open a file, its owner's alone, as `opener` of `open`. DataError: a link stands in its place.

    For files where a worker may write: a command follows no link of its to what a worker may not touch.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), PRIVATE)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DataError(
            f"{path}: is a link, where a file of this node's own should be. Delete it, and look who made it."
        ) from error


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, its owner's alone, beside `path`; on success it becomes `path`, else it goes.

    Raises FileExistsError where `path` is there already and not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads that lock `path` waiting: what is read here stands until written."""
    with path.with_name(f".{path.name}.lock").open("wb") as door:
        lock(door.fileno())
        yield


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes and threads that lock `folder` waiting; nothing is left in it."""
    door = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(door)
        yield
    finally:
        os.close(door)
