"""A hospital's folder on disk: built aside, complete when it gets its name, with a key of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import DataError
from common.sheets import to_csv


@contextmanager
def new_hospital(folder: Path, site: str, *, seed: int, key_of: str | None = None) -> Iterator[Path]:
    """Yield a folder to fill; it becomes `folder/site` when the block ends well, and nothing otherwise.

    Its key is derived from its name, or from `key_of`: hospitals with the same patients and the same key
    have every patient on the same side.

    Simulated hospitals can be written again from their seed, so files are not synced one by one: a
    rename alone keeps a half-written hospital from being taken for a whole one.
    """
    target = folder / site
    _refuse_existing(target)
    partial = folder / f".{site}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _write_key(partial, site_key(seed, key_of or site))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def site_key(seed: int, site: str) -> bytes:
    """Return 32 bytes that stand for a hospital's secret. Simulation only: a real hospital draws its own.

    Derived by HKDF (RFC 5869), so that a simulated federation splits its patients the same way every time.
    """
    purpose = f"zamenis simulated site key\x1f{site}".encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(seed.to_bytes(8, "big"))


def check_sites(folder: Path, names: Iterable[str], *, source: Path) -> None:
    """Raise DataError unless `folder` can take a new hospital of each name, on any system."""
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(name.casefold(), name)
        if not name or name != name.strip() or name[0] in ".-" or name[-1] == ".":
            fault = "must not be empty, start with a dot or dash, end with a dot, or have blanks around it"
        elif set(name) & set('/\\:*?"<>|') or not name.isprintable() or PureWindowsPath(name).is_reserved():
            fault = 'must be a plain folder name, without path separators or any of : * ? " < > |'
        elif twin != name:
            fault = f"differs from {twin!r} in upper and lower case only"
        else:
            _refuse_existing(folder / name)
            continue
        raise DataError(f"{source}: site name {name!r} {fault}. Rename the site in the table.")


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise DataError(f"{target}: exists already and is left alone. Remove it, or name another folder.")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table in UTF-8 with plain line ends, the same bytes on every system."""
    path.write_text(to_csv([header, *rows]), encoding="utf-8", newline="")


def _write_key(hospital: Path, key: bytes) -> None:
    """Write `.zamenis/site.key`, readable by its owner alone."""
    private = hospital / ".zamenis"
    private.mkdir(mode=0o700)
    with os.fdopen(os.open(private / "site.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
