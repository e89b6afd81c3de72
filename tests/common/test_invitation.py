"""A join token says everything, to whoever may see it; a damaged one says that it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EnrolmentError
from common.invitation import Invitation, new_secret

names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?", fullmatch=True)
digests = st.binary(min_size=32, max_size=32)
invitations = st.builds(
    Invitation,
    federation=names,
    hospital=names,
    host=st.sampled_from(["meta.example.org", "192.0.2.7", "2001:db8::7", "localhost"]),
    port=st.integers(1, 65535),
    fingerprint=digests,
    secret=digests,
    expires=st.integers(0, 2**40),
)
ONE = Invitation("demo", "st-anna", "meta.example.org", 8443, bytes(32), b"\x5a" * 32, 1_800_000_000)


@given(invitations)
def test_a_token_arrives(invitation: Invitation) -> None:
    """Decoding what was encoded gives it back, on one line."""
    token = invitation.encode()
    assert token.isprintable()
    assert token.startswith("zamenis1-")
    assert Invitation.decode(token) == invitation


def test_a_mail_may_break_the_line() -> None:
    """White space within a token does not matter."""
    token = ONE.encode()
    assert Invitation.decode(f"  {token[:40]}\r\n  {token[40:]}\n") == ONE


@given(st.data())
def test_every_mistyped_character_is_noticed(data: st.DataObject) -> None:
    """Another letter at any place of the body makes the token damaged, in each of base64's three endings."""
    token = replace(ONE, hospital=data.draw(st.sampled_from(["a", "ab", "abc"]))).encode()
    places = st.integers(len("zamenis1-"), len(token) - 1) | st.just(len(token) - 1)
    place = data.draw(places)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=é"
    letter = data.draw(st.sampled_from([one for one in letters if one != token[place]]))
    with pytest.raises(EnrolmentError, match="damaged"):
        Invitation.decode(token[:place] + letter + token[place + 1 :])


def test_every_truncated_token_is_noticed() -> None:
    """Whatever is missing at the end."""
    token = ONE.encode()
    for end in range(len("zamenis1-"), len(token)):
        with pytest.raises(EnrolmentError, match="damaged"):
            Invitation.decode(token[:end])


@pytest.mark.parametrize("text", ["", "hello", "zamenis-abc", "ZAMENIS1-abc", "https://example.org"])
def test_what_is_no_token_is_told_so(text: str) -> None:
    """The message says what a token begins with."""
    with pytest.raises(EnrolmentError, match=r"no join token.*zamenis1-"):
        Invitation.decode(text)


def test_another_version_is_told_so() -> None:
    """Before anything else of it is read."""
    with pytest.raises(EnrolmentError, match=r"version 2.*reads version 1"):
        Invitation.decode("zamenis2-whatever-comes")


def test_a_token_expires() -> None:
    """In the second that it names, not before."""
    ONE.refuse_expired(ONE.expires - 1)
    with pytest.raises(EnrolmentError, match="expired on 2027-01-15 at 08:00 UTC"):
        ONE.refuse_expired(ONE.expires)


def test_a_secret_is_new_and_shown_nowhere() -> None:
    """Neither as bytes nor as hexadecimal in a repr."""
    assert new_secret() != new_secret()
    assert "secret" not in repr(ONE)
    assert "5a5a" not in repr(ONE)
    assert "ZZZZ" not in repr(ONE)
