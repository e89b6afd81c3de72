"""The hospital's own secret, and what comes of it: who is learned from, and names that tell nothing."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common.errors import DataError, TooSmallError

KEY_BYTES = 32
PATIENTS = "patients.key"
"""The secret that names patients and rows alike in all folders of a node, wherever a folder is moved."""


@dataclass(frozen=True)
class SiteKeys:
    """One key per purpose, so that no two uses of the site's secret can be played against each other."""

    split: bytes = field(repr=False)
    patient: bytes = field(repr=False)
    file: bytes = field(repr=False)
    digest: bytes = field(repr=False)


def open_keys(state: Path) -> SiteKeys:
    """Return the keys derived from `state`/site.key, a secret made at the first call (RFC 5869, SHA-256).

    Raises DataError where the secret cannot be made or is damaged: another one would split patients anew.
    """
    path = state / "site.key"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create_once(path, secrets.token_bytes(KEY_BYTES))
        root = _read_key(path)
    except OSError as error:
        raise DataError(
            f"{path}: the hospital's secret cannot be kept there ({error.strerror}). "
            "Give a state folder on a local disk that may be written to."
        ) from error
    keys = SiteKeys(*(_derive(root, purpose) for purpose in ("split", "patient", "file", "digest")))
    if not (state / PATIENTS).exists():
        return keys
    shared = _read_key(state / PATIENTS)
    return replace(keys, patient=_derive(shared, "patient"), file=_derive(shared, "file"))


def share_patients(node: Path, state: Path) -> None:
    """Let `state` name patients and rows by the secret of all folders of the node whose state is `node`.

    So one patient in two folders is one patient, and a row of a folder that was moved is the row that it was.
    A node without a secret takes over the state's: a hospital that joined anew knows its rows again.
    DataError: the node has other folders, whose patients go by another secret.
    """
    for folder in (node, state):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (node / PATIENTS).exists():
        known = (state / PATIENTS).exists()
        secret = _read_key(state / PATIENTS) if known else secrets.token_bytes(KEY_BYTES)
        _create_once(node / PATIENTS, secret)
    secret = _read_key(node / PATIENTS)
    if not (state / PATIENTS).exists():
        _create_once(state / PATIENTS, secret)
    if not hmac.compare_digest(_read_key(state / PATIENTS), secret):
        raise DataError(f"{state}: belongs to another node. Give this one a state of its own, with --state.")


def keyed_hash(key: bytes, text: str) -> str:
    """Return 128 bits of HMAC-SHA256 as hexadecimal: the same text has the same name, which tells nothing."""
    return hmac.digest(key, text.encode("utf-8", "surrogateescape"), "sha256")[:16].hex()


def content_of(keys: SiteKeys, path: Path) -> str:
    """Return 128 bits of HMAC-SHA256 of a file's bytes as hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hmac.new(keys.file, digestmod="sha256"))
    return digest.hexdigest()[:32]


def fraction(key: bytes, text: str) -> float:
    """Return a number in [0, 1), uniform over texts: 53 bits of HMAC-SHA256, as many as a float holds."""
    digest = hmac.digest(key, text.encode("utf-8", "surrogateescape"), "sha256")
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def divide(
    patients: Sequence[str], fractions: Sequence[float], given: Sequence[bool | None], *, share: float
) -> NDArray[np.bool_]:
    """Return per case whether it is learned from (adaptation) rather than tested on; a patient is never both.

    A side `given` for one case of a patient holds for all of them; otherwise the patient's fraction decides.
    Raises DataError where one patient is given both sides, and TooSmallError where a side stays empty.
    """
    decided: dict[str, bool] = {}
    for patient, side in zip(patients, given, strict=True):
        if side is not None and decided.setdefault(patient, side) != side:
            raise DataError(
                "The split column puts a patient on both sides; give all of a patient's rows one."
            )
    drawn = zip(patients, fractions, strict=True)
    adaptation = np.array([decided.get(patient, place < share) for patient, place in drawn], bool)
    if len(patients) > 1 and len(set(patients)) == 1:
        raise TooSmallError(
            f"All {len(patients)} cases are one patient's: too few to split. If they are not, a placeholder "
            "such as ANONYMOUS stands for all of them; give every patient a pseudonym."
        )
    if adaptation.all() or not adaptation.any():
        side_of_all = "adaptation" if adaptation.all() else "test"
        raise TooSmallError(
            f"All {len(set(patients))} patients are on the {side_of_all} side: "
            "too few to split. Add patients, or name sides in a split column."
        )
    return adaptation


def _create_once(path: Path, content: bytes) -> None:
    """Write `path` whole, mode 0600, unless another process was first; linking decides who was."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".site.key.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{path}: must hold {KEY_BYTES} bytes and holds {len(key)}. Restore it from a backup; "
            "or delete it with the whole state folder, which splits the patients anew."
        )
    return key


def _derive(root: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"zamenis site {purpose}".encode()).derive(root)
