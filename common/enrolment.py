"""What crosses when a hospital enrols, as JSON over HTTPS; bytes are base64.

| request | body | answer |
|---|---|---|
| `GET /v1/zamenis/federation` | | `Greeting` |
| `POST /v1/zamenis/enrol` | `Application` | `Welcome`, or a `Refusal` |
| `POST /v1/zamenis/roster` | `RosterQuestion` | `RosterAnswer`, or a `Refusal` |

The greeting is fetched before anything is trusted: only its CA certificate counts, and only after its
fingerprint was compared with the token's. The application proves that the hospital holds both private
keys, and binds them to this federation, this name and this token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from pydantic import AfterValidator, ConfigDict, Field

from common.errors import EnrolmentRefused
from common.identity import framed
from common.invitation import SECRET_BYTES
from common.names import Name
from common.secagg.vouching import MOST_BYTES
from common.sections import Section

GREETING_PATH = "/v1/zamenis/federation"
ENROL_PATH = "/v1/zamenis/enrol"
ROSTER_PATH = "/v1/zamenis/roster"
MAX_APPLICATION = 16 * 1024
"""Bytes of the longest application that is read."""
MAX_ANSWER = 1024 * 1024
"""Bytes of the longest answer that is read: a welcome names every enrolled hospital's key."""
MAX_QUESTION = 512 * 1024
"""Bytes of the longest question for the roster that is read: a hospital's words on every other one."""
MAX_ROSTER = 32 * 1024 * 1024
"""Bytes of the longest answer to it: everybody's words on everybody, where 255 vouch for 254 each."""
MOST_VOUCHES = 255
"""Vouches in one question."""
CLOCK_TOLERANCE = 5.0
"""Seconds that two clocks may differ; Flower's own bound on a node that is ahead."""

QUESTION_TOLERANCE = 60.0
"""Seconds for which a signed question is good."""

_PROOF = b"zamenis enrolment v1"
_QUESTION = b"zamenis roster question v2"


class Code(StrEnum):
    """Why an application is refused."""

    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    USED = "used"
    EXPIRED = "expired"
    REJECTED = "rejected"
    REVOKED = "revoked"
    KEY_TAKEN = "key-taken"
    UNAVAILABLE = "unavailable"


REFUSALS: dict[Code, tuple[int, str]] = {
    Code.MALFORMED: (400, "this is no application that can be checked; install the coordinator's version."),
    Code.UNKNOWN: (
        403,
        "the token opens nothing here: it is forged, or a newer one has taken its place. "
        "Ask the coordinator for a new one.",
    ),
    Code.USED: (
        409,
        "the token has been used already, with other keys. If that was not you, tell the coordinator; "
        "in any case ask for a new token.",
    ),
    Code.EXPIRED: (410, "the token has expired. Ask the coordinator for a new one."),
    Code.REJECTED: (403, "the coordinator has rejected this hospital. Ask the coordinator why."),
    Code.REVOKED: (403, "the coordinator has revoked this hospital. Ask the coordinator for a new token."),
    Code.KEY_TAKEN: (409, "these keys were enrolled before. Join into a new folder, which makes new keys."),
    Code.UNAVAILABLE: (503, "the coordinator cannot enrol anybody now. Try again later with the same token."),
}
"""Each code's HTTP status and sentence; a hospital shows its own copy, never what a coordinator writes."""


def refused(code: Code) -> EnrolmentRefused:
    """Return the error that says `code` in its fixed words."""
    return EnrolmentRefused(code, REFUSALS[code][1])


class _Crossing(Section):
    """A body on its way: bytes as base64, and no value of it in an error."""

    model_config = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64", hide_input_in_errors=True, allow_inf_nan=False
    )

    def to_json(self) -> bytes:
        """Return the body as it is sent."""
        return self.model_dump_json(by_alias=True).encode()


class Greeting(_Crossing):
    """Who answers; what anybody may know."""

    name: Name
    protocol: int
    ca: str
    """The CA certificate as PEM."""
    time: float
    """The coordinator's clock in unix seconds."""


def _node_key(der: bytes) -> bytes:
    """Return `der` where it is the one way to write a P-384 public key: no key may pass as two."""
    key = load_der_public_key(der)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("must be a P-384 key")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != der:
        raise ValueError("must be written uncompressed, as a named curve")
    return der


Signature = Annotated[bytes, Field(max_length=256)]
NodeKey = Annotated[bytes, Field(max_length=256), AfterValidator(_node_key)]
IdentityKey = Annotated[bytes, Field(min_length=32, max_length=32)]
SignedVouch = Annotated[bytes, Field(max_length=MOST_BYTES)]


class Application(_Crossing):
    """A hospital asks to be enrolled under the name it was admitted by."""

    hospital: Name
    secret: Annotated[bytes, Field(min_length=SECRET_BYTES, max_length=SECRET_BYTES, repr=False)]
    node_key: NodeKey
    """EC P-384, DER SubjectPublicKeyInfo: what Flower authenticates the node by."""
    identity_key: IdentityKey
    """Ed25519, raw: what other hospitals know this one by."""
    node_proof: Signature
    """ECDSA with SHA-384 by the node's key over `statement`."""
    identity_proof: Signature
    """Ed25519 by the identity key over `statement`."""

    @classmethod
    def sign(
        cls,
        *,
        federation: str,
        hospital: str,
        secret: bytes,
        node: ec.EllipticCurvePrivateKey,
        identity: Ed25519PrivateKey,
    ) -> Self:
        """Return the application with both proofs."""
        node_key = node.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        identity_key = identity.public_key().public_bytes_raw()
        text = statement(federation, hospital, secret, node_key, identity_key)
        return cls(
            hospital=hospital,
            secret=secret,
            node_key=node_key,
            identity_key=identity_key,
            node_proof=node.sign(text, ec.ECDSA(SHA384())),
            identity_proof=identity.sign(text),
        )

    def is_proven(self, federation: str) -> bool:
        """Return whether both private keys signed exactly this, for `federation`."""
        text = statement(federation, self.hospital, self.secret, self.node_key, self.identity_key)
        node = load_der_public_key(self.node_key)
        if not isinstance(node, ec.EllipticCurvePublicKey):
            return False
        try:
            node.verify(self.node_proof, text, ec.ECDSA(SHA384()))
            Ed25519PublicKey.from_public_bytes(self.identity_key).verify(self.identity_proof, text)
        except (InvalidSignature, ValueError):
            return False
        return True


class Welcome(_Crossing):
    """The application stands: enrolled, or waiting for the coordinator's people."""

    status: Literal["enrolled", "pending"]
    hospital: Name
    node_id: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Flower's number of the node; 0 while pending."""
    identity_keys: dict[Name, IdentityKey] = Field(default_factory=dict)
    """Of every enrolled hospital, this one included; empty while pending."""


class About(_Crossing):
    """What a hospital says of itself, for the coordinator's people to see."""

    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,32}$")]
    """Of the Zamenis that it runs."""
    knows: Annotated[tuple[Name, ...], Field(max_length=MOST_VOUCHES)] = ()
    """The hospitals that count for it: confirmed by a call, or vouched for."""

    def signed(self) -> bytes:
        """Return it as it is signed."""
        return framed(self.version.encode(), *(name.encode() for name in self.knows))


class RosterQuestion(_Crossing):
    """An enrolled hospital asks who else is, and says for whom it vouches and whom it knows."""

    hospital: Name
    time: float
    """The hospital's clock in unix seconds: a question that somebody recorded is worth nothing later."""
    about: About
    vouches: Annotated[tuple[SignedVouch, ...], Field(max_length=MOST_VOUCHES)] = ()
    """Its own, each in the canonical encoding (`common.secagg.vouching`)."""
    proof: Signature
    """Ed25519 by the hospital's identity key."""

    @classmethod
    def sign(
        cls,
        *,
        federation: str,
        hospital: str,
        time: float,
        about: About,
        sign: Callable[[bytes], bytes],
        vouches: Sequence[bytes] = (),
    ) -> RosterQuestion:
        """Return the question, signed by the hospital's identity key."""
        proof = sign(cls._statement(federation, hospital, time, about, vouches))
        return cls(hospital=hospital, time=time, about=about, vouches=tuple(vouches), proof=proof)

    def is_proven(self, federation: str, identity_key: bytes, now: float) -> bool:
        """Return whether the owner of that key asks, now."""
        try:
            key = Ed25519PublicKey.from_public_bytes(identity_key)
            said = self._statement(federation, self.hospital, self.time, self.about, self.vouches)
            key.verify(self.proof, said)
        except (InvalidSignature, ValueError):
            return False
        return abs(now - self.time) <= QUESTION_TOLERANCE

    @staticmethod
    def _statement(
        federation: str, hospital: str, time: float, about: About, vouches: Sequence[bytes]
    ) -> bytes:
        asks = (federation.encode(), hospital.encode(), repr(time).encode(), about.signed())
        return framed(_QUESTION, *asks, *vouches)


class RosterAnswer(_Crossing):
    """Every enrolled hospital's identity key, the one who asks included, and who vouches for whom."""

    identity_keys: dict[Name, IdentityKey]
    vouches: tuple[SignedVouch, ...] = ()


class Refusal(_Crossing):
    """The application does not stand."""

    code: Code
    words: str


def statement(federation: str, hospital: str, secret: bytes, node_key: bytes, identity_key: bytes) -> bytes:
    """Return what both keys sign: context, federation, hospital, SHA-256 of the secret, both public keys."""
    digest = hashlib.sha256(secret).digest()
    return framed(_PROOF, federation.encode(), hospital.encode(), digest, node_key, identity_key)
