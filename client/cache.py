"""A hospital's tensors on disk: every file is decoded once, and again only when it has changed.

    <state>/cache/1x64x64/index.json      what is known of each file, by keyed hashes only
    <state>/cache/1x64x64/pixels-*.npy    float32 [row, channel, height, width], memory-mapped
    <state>/cache/1x64x64/fresh.*         what a pass has read that is not over (`client.journal`)

The index names its array, and replacing the index is the one step that counts: a process that opens
the same hospital meanwhile sees the old pair or the new one. Whatever does not fit together is built
anew; a cache is never a reason to fail.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from client.journal import Journal
from common.files import PRIVATE, write_bytes
from common.published import PIPELINE

FORMAT = f"5.{PIPELINE}"
"""Another one whenever the index's fields, or the way from a file to its pixels, change."""

ROWS_AT_ONCE = 256
"""Rows copied in one piece when an array is put in order."""

MOST_SIZES = 8
"""Sizes of one folder's images and masks that are kept; of more, the one unused for longest is made anew."""


@dataclass(frozen=True)
class Known:
    """What is remembered of one file. Identifiers are keyed hashes; empty where never read."""

    size: int
    mtime_ns: int
    reason: str = ""
    """Why the file itself cannot be used, whatever the labels say; empty: it can."""
    remedy: str = ""
    SOPInstanceUID: str = ""
    StudyInstanceUID: str = ""
    AccessionNumber: str = ""
    patient: str = ""
    content: str = ""
    """Keyed hash of the file's bytes; empty where its pixels were not needed yet."""
    fraction: float = 0.0
    """The patient's place in [0, 1), for the split."""
    row: int = -1
    """The row of its pixels; -1 where they were not needed yet."""
    series: str = ""
    place: float = 0.0
    """Where in its series it lies (`client.header`)."""
    exposures: str = ""
    """Keyed hashes of its exposure's names, separated by spaces."""
    for_processing: bool = False
    alike: str = ""
    """What PatientIDs share that differ by case, blanks or leading zeros alone; empty: it has none."""


def _line(known: Known) -> tuple[Any, ...]:
    """Return the fields in their order, as `astuple` does, which takes long over copies of each."""
    return tuple(vars(known).values())


class Cache:
    """One hospital's pixels at one size; a context, since rows wait in a journal until `arrange`."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], stamp: str = "") -> None:
        """Open the cache in `folder`; one that was written under another `stamp` is built anew."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(folder)
        _forget_old_sizes(besides=folder)
        self._folder = folder
        self._shape = shape
        self._stamp = stamp
        self._index = folder / "index.json"
        self._name, self._files, self._old = self._load()
        self._fresh = Journal(folder, shape, f"{FORMAT} {stamp}")
        with suppress(TypeError):
            for name, (row, known) in self._fresh.found.items():
                self._files[name] = replace(Known(*known), row=len(self._old) + row if row >= 0 else -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fresh.close(failed=error is not None)

    def recall(self, name: str, size: int, mtime_ns: int) -> Known | None:
        """Return what is known of the file `name`, or None where it is new or has changed."""
        known = self._files.get(name)
        return known if known and (known.size, known.mtime_ns) == (size, mtime_ns) else None

    def append(self, pixels: Float[Tensor, "channel height width"]) -> int:
        """Keep a new file's pixels and return their row."""
        return len(self._old) + self._fresh.append(pixels.numpy().tobytes())

    def note(self, name: str, known: Known) -> None:
        """Keep what a file's first reading found, for a pass after one that is killed before `arrange`."""
        self._fresh.note(name, max(known.row - len(self._old), -1), _line(known))

    def arrange(
        self, files: Mapping[str, Known], order: Sequence[str]
    ) -> Float[Tensor, "row channel height width"]:
        """Return the rows of `order`, contiguous and memory-mapped, and make `files` what is known.

        Rows of files outside `order` are kept behind, in case a label brings them back.
        """
        chosen = set(order)
        kept = [name for name, known in files.items() if known.row >= 0 and name not in chosen]
        names = [*order, *kept]
        rows = [files[name].row for name in names]
        settled = dict(files) | {name: replace(files[name], row=row) for row, name in enumerate(names)}
        if rows != list(range(len(self._old))):
            self._rewrite(rows, settled)
        elif settled != self._files:
            self._save(self._name, len(rows), settled)
        self._fresh.clear()
        return torch.from_numpy(self._old)[: len(order)]

    def _rewrite(self, rows: list[int], files: Mapping[str, Known]) -> None:
        name = f"pixels-{secrets.token_hex(8)}.npy" if rows else ""
        if rows:
            self._write_array(self._folder / name, rows)
        self._save(name, len(rows), files)
        if self._name:
            (self._folder / self._name).unlink(missing_ok=True)
        self._name, self._old = name, self._open_array(name, len(rows))

    def _write_array(self, path: Path, rows: list[int]) -> None:
        """Write the given rows of old and fresh pixels, in that order."""
        old, fresh = self._old, self._fresh.array()
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), *self._shape)}
        with open(path, "xb", opener=partial(os.open, mode=PRIVATE)) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(rows), ROWS_AT_ONCE):
                chunk = rows[start : start + ROWS_AT_ONCE]
                file.write(
                    np.stack([old[row] if row < len(old) else fresh[row - len(old)] for row in chunk]).data
                )
            file.flush()
            os.fsync(file.fileno())

    def _save(self, name: str, rows: int, files: Mapping[str, Known]) -> None:
        index = {
            "format": FORMAT,
            "stamp": self._stamp,
            "array": name,
            "rows": rows,
            "files": {file: _line(known) for file, known in files.items()},
        }
        write_bytes(self._index, json.dumps(index, separators=(",", ":")).encode(), mode=PRIVATE)
        self._files = dict(files)

    def _load(self) -> tuple[str, dict[str, Known], NDArray[np.float32]]:
        """Return the array's name, the known files and the array; all empty where anything does not fit."""
        try:
            index = json.loads(self._index.read_bytes())
            if (index["format"], index["stamp"]) != (FORMAT, self._stamp):
                raise ValueError("another format")
            files = {name: Known(*known) for name, known in index["files"].items()}
            rows = sorted(known.row for known in files.values() if known.row >= 0)
            if rows != list(range(index["rows"])):
                raise ValueError("rows and files differ")
            return index["array"], files, self._open_array(index["array"], index["rows"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError):
            return "", {}, self._open_array("", 0)

    def _open_array(self, name: str, rows: int) -> NDArray[np.float32]:
        """Map an array copy-on-write, as torch wants writable memory; nothing ever writes to it."""
        if not rows:
            return np.empty((0, *self._shape), np.float32)
        array: NDArray[np.float32] = np.load(self._folder / Path(name).name, mmap_mode="c")
        if array.shape != (rows, *self._shape) or array.dtype != np.float32:
            raise ValueError("the array has another shape")
        return array


def _forget_old_sizes(*, besides: Path) -> None:
    """Delete the sizes unused for longest: who asks for ever others fills no disk, and nothing is lost."""
    with suppress(FileNotFoundError):  # another process deletes the same
        others = [path for path in besides.parent.iterdir() if path.is_dir() and path != besides]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for size in others[MOST_SIZES - 1 :]:
            shutil.rmtree(size, ignore_errors=True)
