"""Who sends a request to the Fleet interface, by its headers alone: before anything of its body is read.

Flower's SuperLink looks as well, and holds the key against the node that the body names; but it reads the
whole body first, and anybody could fill this machine's memory with bodies that never end.
"""

from __future__ import annotations

import datetime
from base64 import b64decode
from collections.abc import Mapping

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature


def sender(headers: Mapping[str, str]) -> bytes | None:
    """Return the public key (DER) that just signed these headers, as Flower's nodes do; None: none did."""
    try:
        key = bytes_to_public_key(b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True))
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        signed_at = headers[TIMESTAMP_HEADER]
        age = (now() - datetime.datetime.fromisoformat(signed_at)).total_seconds()
        fresh = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        if fresh and verify_signature(key, signed_at.encode("ascii"), signature):
            return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # whatever a parser does with texts that somebody made up
        return None
    return None
