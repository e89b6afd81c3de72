"""What crosses at enrolment: proofs bind everything, bytes survive JSON, keys have one spelling."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.enrolment import REFUSALS, Application, Code, Welcome
from common.identity import fingerprint, framed, unframed

NODE = ec.generate_private_key(ec.SECP384R1())
IDENTITY = Ed25519PrivateKey.generate()
SECRET = b"\x5a" * 32


def application(**changed: object) -> Application:
    """Return St Anna's application to `demo`, with fields exchanged after signing."""
    signed = Application.sign(
        federation="demo", hospital="st-anna", secret=SECRET, node=NODE, identity=IDENTITY
    )
    return signed.model_copy(update=changed)


def test_an_application_arrives_and_is_proven() -> None:
    """JSON and back; both proofs hold, for its own federation only."""
    arrived = Application.model_validate_json(application().to_json())
    assert arrived.secret == SECRET
    assert arrived.is_proven("demo")
    assert not arrived.is_proven("other")


@pytest.mark.parametrize(
    "changed",
    [
        {"hospital": "st-anne"},
        {"secret": bytes(32)},
        {"node_key": ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo)},
        {"identity_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw()},
        {"identity_key": bytes(32)},
        {"node_proof": b""},
        {"identity_proof": b"\x00" * 64},
    ],
)  # fmt: skip
def test_nothing_can_be_exchanged(changed: dict[str, object]) -> None:
    """Any other name, secret, key or proof is not what was signed."""
    assert not application(**changed).is_proven("demo")


def test_proofs_are_by_both_keys() -> None:
    """One key's proof is not the other's."""
    other = Application.sign(
        federation="demo",
        hospital="st-anna",
        secret=SECRET,
        node=ec.generate_private_key(ec.SECP384R1()),
        identity=IDENTITY,
    )
    assert not application(node_proof=other.node_proof).is_proven("demo")
    assert not application(identity_proof=other.identity_proof).is_proven("demo")


@pytest.mark.parametrize(
    "der",
    [
        b"no key",
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        NODE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) + b"\x00",
        # The same point, compressed: SEQUENCE(70) { the same algorithm, BIT STRING(50) { 0, 02|03, x } }.
        b"\x30\x46"
        + NODE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)[2:20]
        + b"\x03\x32\x00"
        + NODE.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint),
    ],
    ids=["no key", "another curve", "another kind", "a byte too many", "compressed"],
)
def test_a_node_key_has_one_spelling(der: bytes) -> None:
    """P-384, named curve, uncompressed, nothing after it: a key cannot be enrolled twice as two."""
    tree = json.loads(application().to_json()) | {"node-key": base64.b64encode(der).decode()}
    with pytest.raises(ValidationError):
        Application.model_validate_json(json.dumps(tree))


@pytest.mark.parametrize(
    "changed",
    [{"secret": "AAAA"}, {"identity-key": ""}, {"hospital": "../x"}, {"extra": 1}, {"secret": 3}],
)
def test_what_is_no_application_is_refused(changed: dict[str, object]) -> None:
    """Wrong lengths, names, types and unknown keys; the error shows no value."""
    tree = json.loads(application().to_json()) | changed
    with pytest.raises(ValidationError) as caught:
        Application.model_validate_json(json.dumps(tree))
    assert "AAAA" not in str(caught.value)


def test_no_secret_in_a_repr() -> None:
    """Neither raw nor as base64."""
    assert "secret" not in repr(application())
    assert "ZZZZ" not in repr(application())


def test_a_welcome_arrives() -> None:
    """With a node number above 2^63."""
    sent = Welcome(status="enrolled", hospital="a", node_id=2**64 - 1, identity_keys={"a": b"k" * 32})
    assert Welcome.model_validate_json(sent.to_json()) == sent


def test_every_code_has_its_words() -> None:
    """And a status that is no success."""
    assert set(REFUSALS) == set(Code)
    assert all(status >= 400 and words.endswith(".") for status, words in REFUSALS.values())


@given(st.lists(st.binary(max_size=9), max_size=5), st.lists(st.binary(max_size=9), max_size=5))
def test_framed_parts_are_unambiguous(one: list[bytes], other: list[bytes]) -> None:
    """Parts come back, and two lists give the same bytes only where they are equal."""
    assert unframed(framed(*one)) == one
    assert (framed(*one) == framed(*other)) == (one == other)


@given(st.binary(max_size=3) | st.binary(min_size=1, max_size=9).map(lambda part: framed(part)[:-1]))
def test_a_part_cut_short_is_noticed(content: bytes) -> None:
    """Nothing is made up for what is missing."""
    if content:
        with pytest.raises(ValueError, match="cut short"):
            unframed(content)


def test_fingerprints_can_be_read_out() -> None:
    """Sixteen groups of four, of SHA-256 ("abc" is the example of FIPS 180-4)."""
    groups = fingerprint(b"abc").split(" ")
    assert groups[:2] == ["ba78", "16bf"]
    assert [len(group) for group in groups] == [4] * 16
