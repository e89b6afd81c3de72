"""Keys that two sites share: X25519 and HKDF-SHA256, and the sealing of shares (RFC 7748, 5869, 8439).

Every derived key names its purpose and its whole context, so that no key serves twice.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.secagg.encoding import statement
from common.secagg.entropy import fresh
from common.secagg.reasons import Reason, refusal

NONCE = 12


def public_of(secret: bytes) -> bytes:
    """Return the X25519 public key of a 32-byte private one."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def shared_key(secret: bytes, public: bytes, site: str, purpose: str, *context: object) -> bytes:
    """Return the 32-byte key that both ends derive; `site` is the other end, named if its key is unusable."""
    try:
        agreed = X25519PrivateKey.from_private_bytes(secret).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise refusal(Reason.BAD_KEY, site) from error
    return derived_key(agreed, purpose, *context)


def derived_key(secret: bytes, purpose: str, *context: object) -> bytes:
    """Return a 32-byte key for one purpose and context."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=statement(purpose, *context)).derive(secret)


def seal(key: bytes, plain: bytes, *context: object) -> bytes:
    """Return a random nonce (12 bytes), the ciphertext and its tag (16 bytes), by ChaCha20-Poly1305."""
    nonce = fresh(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, statement("sealed share", *context))


def unseal(key: bytes, sealed: bytes, site: str, *context: object) -> bytes:
    """Return what `site` sealed with this key and context; SecAggError `bad-share` for anything else."""
    try:
        return ChaCha20Poly1305(key).decrypt(
            sealed[:NONCE], sealed[NONCE:], statement("sealed share", *context)
        )
    except (InvalidTag, ValueError) as error:
        raise refusal(Reason.BAD_SHARE, site) from error
