"""Identities, rosters and the keys that two sites agree on."""

from __future__ import annotations

import pytest

from common.errors import SecAggError
from common.secagg import agreement
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.reasons import WORDS, Reason


def test_a_signature_is_for_one_purpose_and_one_site() -> None:
    """Neither another purpose, nor other content, nor another site's key verifies it."""
    one, two = Identity.make(), Identity.make()
    roster = Roster({"one": Peer(one.public), "two": Peer(two.public)})
    signature = one.sign("manifest", "run", 1)
    roster.verify("one", signature, "manifest", "run", 1)
    for site, purpose, content in (
        ("one", "masked", ("run", 1)),
        ("one", "manifest", ("run", 2)),
        ("one", "manifest", ("run",)),
        ("two", "manifest", ("run", 1)),
    ):
        with pytest.raises(SecAggError) as caught:
            roster.verify(site, signature, purpose, *content)
        assert (caught.value.reason, caught.value.site) == ("untrusted", site)
    with pytest.raises(SecAggError) as caught:
        roster.verify("three", signature, "manifest", "run", 1)
    assert caught.value.reason == "unknown-site"


def test_only_a_compared_digest_confirms() -> None:
    """New and changed keys are unconfirmed; the digest covers every name and key, in any order."""
    keys = {name: Identity.make().public for name in ("a", "b")}
    roster = Roster({}).admit("b", keys["b"]).admit("a", keys["a"])
    assert roster.digest() == Roster({}).admit("a", keys["a"]).admit("b", keys["b"]).digest()
    assert roster.unconfirmed(["a", "b"]) == 2
    confirmed = roster.confirm(["a", "b"], roster.digest().upper() + "\n")
    assert confirmed.unconfirmed(["a", "b"]) == 0
    assert confirmed.admit("a", keys["a"]) is confirmed
    swapped = confirmed.admit("a", Identity.make().public)
    assert swapped.unconfirmed(["a", "b"]) == 1
    assert swapped.digest() != confirmed.digest()
    with pytest.raises(SecAggError) as caught:
        swapped.confirm(["a"], confirmed.digest())
    assert caught.value.reason == "wrong-digest"


def test_both_ends_derive_the_same_key_and_no_other() -> None:
    """A key depends on every part of its context."""
    ours, theirs = Identity.make().secret, Identity.make().secret
    here = agreement.shared_key(ours, agreement.public_of(theirs), "b", "share", "run", 1, "a", "b")
    there = agreement.shared_key(theirs, agreement.public_of(ours), "a", "share", "run", 1, "a", "b")
    assert here == there
    contexts = [("share", "run", 1, "b", "a"), ("share", "run", 2, "a", "b"), ("pair", "run", 1, "a", "b")]
    others = {
        agreement.shared_key(ours, agreement.public_of(theirs), "b", purpose, *context)
        for purpose, *context in contexts
    }
    assert len(others | {here}) == 4


def test_a_key_that_forces_the_outcome_is_refused() -> None:
    """The point 0 has order 1: every exchange with it gives zeros (RFC 7748, section 6.1)."""
    with pytest.raises(SecAggError) as caught:
        agreement.shared_key(Identity.make().secret, bytes(32), "b", "pair")
    assert (caught.value.reason, caught.value.site) == ("bad-key", "b")


def test_a_sealed_share_is_bound_to_its_context() -> None:
    """One changed or missing byte, another key or another context, and it does not open."""
    key = Identity.make().secret
    sealed = agreement.seal(key, b"share", "run", 1, "a", "b")
    assert agreement.unseal(key, sealed, "a", "run", 1, "a", "b") == b"share"
    assert agreement.seal(key, b"share", "run", 1, "a", "b") != sealed
    spoilt = [sealed[:place] + bytes([byte ^ 1]) + sealed[place + 1 :] for place, byte in enumerate(sealed)]
    attempts = [(key, each, ("run", 1, "a", "b")) for each in (*spoilt, sealed[:-1], sealed[:5], b"")]
    attempts += [(key, sealed, ("run", 1, "b", "a")), (Identity.make().secret, sealed, ("run", 1, "a", "b"))]
    for with_key, data, context in attempts:
        with pytest.raises(SecAggError) as caught:
            agreement.unseal(with_key, data, "a", *context)
        assert (caught.value.reason, caught.value.site) == ("bad-share", "a")


def test_secrets_do_not_show() -> None:
    """A secret is in no representation."""
    identity = Identity(b"\x5a" * 32)
    assert "Z" not in repr(identity)
    assert "5a" not in repr(identity)


def test_every_reason_says_what_to_do() -> None:
    """Each has a sentence of two halves, rule and remedy, and no place for a value."""
    assert set(WORDS) == set(Reason)
    assert all(";" in words and words.endswith(".") and "{" not in words for words in WORDS.values())
