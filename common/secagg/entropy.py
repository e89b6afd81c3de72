"""The one place that secrets come from: the operating system's generator, in simulation too.

The run's seed decides what is learned, never a key, a mask, a share or a nonce.
"""

from __future__ import annotations

import secrets


def fresh(size: int) -> bytes:
    """Return `size` bytes that nobody can predict or repeat."""
    return secrets.token_bytes(size)
