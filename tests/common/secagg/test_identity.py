"""Identities, rosters and the keys that two sites agree on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import SecAggError
from common.identity import fingerprint
from common.secagg import agreement
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.reasons import WORDS, Reason
from tests.common.secagg.federation import refused


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


def test_a_comparison_confirms_one_name_with_one_key() -> None:
    """However it is spaced; nobody else is confirmed by it, and a wrong fingerprint confirms nobody."""
    keys = {name: Identity.make().public for name in ("a", "b")}
    roster = Roster({}).admit("b", keys["b"]).admit("a", keys["a"])
    assert roster.unconfirmed(["a", "b"]) == 2
    confirmed = roster.confirm("a", fingerprint(keys["a"]).upper().replace(" ", "  ") + "\n")
    assert [confirmed.unconfirmed([name]) for name in ("a", "b")] == [0, 1]
    right = fingerprint(keys["a"])
    wrong = "1" + right[1:] if right[0] == "0" else "0" + right[1:]
    for read_out in (fingerprint(keys["b"]), "", right[:-1], wrong, fingerprint(bytes(32))):
        refused("wrong-fingerprint", roster.confirm, "a", read_out, by="a")
    refused("unknown-site", roster.confirm, "c", right, by="c")


def test_another_key_for_a_known_name_waits_for_the_operator() -> None:
    """Confirmed or not, the pinned key stays until the new fingerprint was compared, or is rejected."""
    old, new = Identity.make().public, Identity.make().public
    pinned = Roster({}).admit("a", old)
    for before in (pinned, pinned.confirm("a", fingerprint(old))):
        told = before.admit("a", new)
        assert told.peers["a"] == replace(before.peers["a"], pending=new)
        assert told.admit("a", old) == told, "it still shows after the coordinator went back"
        assert told.reject("a") == before
        assert told.confirm("a", fingerprint(new)).peers["a"] == Peer(new, confirmed=True)
        assert told.confirm("a", fingerprint(old)).peers["a"] == Peer(old, confirmed=True, pending=new)
        refused("wrong-fingerprint", told.confirm, "a", fingerprint(Identity.make().public), by="a")
        assert before.reject("a").peers == {}


def test_one_key_is_not_two_hospitals() -> None:
    """Whoever answers two telephones counts once."""
    key = Identity.make().public
    roster = Roster({}).admit("a", key).admit("b", key).confirm("a", fingerprint(key))
    refused("shared-key", roster.confirm, "b", fingerprint(key), by="b")


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
