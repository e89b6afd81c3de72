"""A join token: everything a hospital needs to find, recognise and convince its coordinator, on one line.

`zamenis1-` and unpadded base64url (RFC 4648, section 5) of the framed fields and a checksum.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from common.errors import EnrolmentError
from common.identity import framed, unframed
from common.names import check_host, check_name

VERSION = 1
DIGEST_BYTES = SECRET_BYTES = 32
_CHECKSUM_BYTES = 6
_TOKEN = re.compile(r"zamenis(?P<version>[0-9]{1,4})-(?P<body>.*)", re.ASCII)


@dataclass(frozen=True)
class Invitation:
    """What a token says."""

    federation: str
    hospital: str
    host: str
    port: int
    fingerprint: bytes
    """SHA-256 of the DER of the federation's CA certificate."""
    secret: bytes = field(repr=False)
    """32 random bytes; whoever has them may enrol, once."""
    expires: int
    """Unix seconds."""

    def encode(self) -> str:
        """Return the token."""
        content = framed(
            self.federation.encode(),
            self.hospital.encode(),
            self.host.encode(),
            self.port.to_bytes(2, "big"),
            self.fingerprint,
            self.secret,
            self.expires.to_bytes(8, "big"),
        )
        body = base64.urlsafe_b64encode(content + _checksum(content)).rstrip(b"=").decode()
        return f"zamenis{VERSION}-{body}"

    @classmethod
    def decode(cls, text: str) -> Invitation:
        """Return what the token `text` says; white space from a mail's line breaks does not matter.

        Raises EnrolmentError: it is no token, it is damaged, or it is of another version.
        """
        token = _TOKEN.fullmatch("".join(text.split()))
        if not token:
            raise EnrolmentError(
                f"this is no join token: one begins with zamenis{VERSION}-. Ask the coordinator for yours."
            )
        if int(token["version"]) != VERSION:
            raise EnrolmentError(
                f"the token is of version {token['version']}, this software reads version {VERSION}; "
                "install the same version of Zamenis as the coordinator."
            )
        try:
            return cls._of(_content(token["body"]))
        except (ValueError, OverflowError):
            raise EnrolmentError(
                "the token is damaged: a part is missing or mistyped. Copy the whole line again."
            ) from None

    @classmethod
    def _of(cls, content: bytes) -> Invitation:
        federation, hospital, host, port, fingerprint, secret, expires = unframed(content)
        if (len(port), len(fingerprint), len(secret), len(expires)) != (2, DIGEST_BYTES, SECRET_BYTES, 8):
            raise ValueError("a field has another length")
        return cls(
            check_name(federation.decode()),
            check_name(hospital.decode()),
            check_host(host.decode()),
            int.from_bytes(port, "big"),
            fingerprint,
            secret,
            int.from_bytes(expires, "big"),
        )

    def refuse_expired(self, now: float) -> None:
        """Raise EnrolmentError where the token has expired at `now`, in unix seconds."""
        if now >= self.expires:
            since = datetime.fromtimestamp(self.expires, UTC)
            raise EnrolmentError(
                f"the token expired on {since:%Y-%m-%d at %H:%M} UTC. Ask the coordinator for a new one."
            )


def new_secret() -> bytes:
    """Return a token's secret, from the operating system."""
    return secrets.token_bytes(SECRET_BYTES)


def fingerprint_of(certificate: x509.Certificate) -> bytes:
    """Return SHA-256 of the certificate's DER."""
    return certificate.fingerprint(SHA256())


def _content(body: str) -> bytes:
    """Return a token's fields, checked; ValueError where a character is not as it was written."""
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except binascii.Error:
        raise ValueError("not base64") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != body:
        raise ValueError("not as base64 is written")
    content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if _checksum(content) != checksum:
        raise ValueError("another checksum")
    return content


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]
