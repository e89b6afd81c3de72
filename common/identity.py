"""Identities of hospitals: fingerprints that people compare, and one way to join what is signed."""

from __future__ import annotations

import hashlib

HEXADECIMALS = 64
"""Of a fingerprint."""


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
    text = hashlib.sha256(key).hexdigest()
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def in_two_lines(fingerprint: str) -> str:
    """Return a fingerprint as two lines of eight groups, as a narrow terminal shows it."""
    groups = fingerprint.split()
    return "\n".join(" ".join(half) for half in (groups[:8], groups[8:]))
