"""Identities of hospitals: fingerprints that people compare, and one way to join what is signed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

_ROSTER = b"zamenis roster v1"


def framed(*parts: bytes) -> bytes:
    """Return `parts` end to end, each after its length in 4 bytes: no two lists give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def unframed(content: bytes) -> list[bytes]:
    """Return the parts that `framed` joined; ValueError where a part is cut short."""
    parts = []
    while content:
        end = 4 + int.from_bytes(content[:4], "big")
        if len(content) < end:
            raise ValueError("a part is cut short")
        parts.append(content[4:end])
        content = content[end:]
    return parts


def fingerprint(key: bytes) -> str:
    """Return SHA-256 of a public key in hexadecimal, in 16 groups of four that two people can read out."""
    return _grouped(hashlib.sha256(key))


def roster_digest(identity_keys: Mapping[str, bytes]) -> str:
    """Return a fingerprint of all hospitals' names and identity keys, whatever order they come in.

    Operators compare it by telephone: it is the same exactly where all see the same hospitals and keys.
    """
    ordered = sorted(identity_keys.items())
    return _grouped(
        hashlib.sha256(framed(_ROSTER, *(part for name, key in ordered for part in (name.encode(), key))))
    )


def _grouped(digest: hashlib._Hash) -> str:
    text = digest.hexdigest()
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))
