"""The coordinator's answers as bytes: who is enrolled, who waits, and what every refusal says."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from client.home import Keys
from common.enrolment import (
    MAX_APPLICATION,
    MAX_QUESTION,
    MAX_ROSTER,
    MOST_VOUCHES,
    REFUSALS,
    About,
    Code,
    Greeting,
    Refusal,
    RosterAnswer,
    RosterQuestion,
    Welcome,
)
from common.names import LONGEST
from common.secagg.encoding import dump
from common.secagg.identity import Identity
from common.secagg.vouching import MOST_BYTES, Vouch, vouch
from common.wire import PROTOCOL
from server.entry import Status
from tests.enrolling import Coordinator, Registry, application, coordinator

NOW = 1_800_000_000


@pytest.fixture
def there(tmp_path: Path) -> Coordinator:
    """Return a new federation."""
    return coordinator(tmp_path / "demo")


def refusal(answer: tuple[int, bytes]) -> Code:
    """Return an answer's code; its status and words are those that belong to it."""
    said = Refusal.model_validate_json(answer[1])
    assert (answer[0], said.words) == REFUSALS[said.code]
    return said.code


def test_the_greeting(there: Coordinator) -> None:
    """Name, protocol, certificate and clock."""
    said = Greeting.model_validate_json(there.enrolment(clock=lambda: 12.5).greeting())
    assert (said.name, said.protocol, said.time) == ("demo", PROTOCOL, 12.5)
    assert said.ca == there.federation.ca.read_text()


def test_a_welcome(there: Coordinator) -> None:
    """The node is registered with Flower; the second hospital learns the first one's key."""
    keys = [Keys.make(), Keys.make()]
    for hospital, mine in zip(("a", "b"), keys, strict=True):
        status, body = there.enrolment().apply(application(there.invite(hospital), mine).to_json())
        assert status == 200
        welcome = Welcome.model_validate_json(body)
        assert (welcome.status, welcome.hospital) == ("enrolled", hospital)
        assert there.roster.by_node_id(welcome.node_id).hospital == hospital  # type: ignore[union-attr]
    assert len(there.registry.nodes) == 2
    expected = {
        name: one.identity.public_key().public_bytes_raw() for name, one in zip("ab", keys, strict=True)
    }
    assert welcome.identity_keys == expected


def test_pending_then_accepted(tmp_path: Path) -> None:
    """Flower hears of the node only after the coordinator's people said yes."""
    there = coordinator(tmp_path / "demo", approval=True)
    body = application(there.invite("a"), Keys.make()).to_json()
    status, answer = there.enrolment().apply(body)
    assert (status, Welcome.model_validate_json(answer)) == (200, Welcome(status="pending", hospital="a"))
    assert there.registry.nodes == {}
    there.roster.accept("a", now=time.time())
    assert Welcome.model_validate_json(there.enrolment().apply(body)[1]).node_id == 2**63
    assert len(there.registry.nodes) == 1


def test_refusals(there: Coordinator) -> None:
    """Forged, of another federation, expired, used, revoked, another's key."""
    answer, keys = there.enrolment().apply, Keys.make()
    invitation = there.invite("a")
    assert refusal(answer(application(invitation, keys, secret=bytes(32)).to_json())) is Code.UNKNOWN
    assert refusal(answer(application(invitation, keys, hospital="b").to_json())) is Code.UNKNOWN
    assert refusal(answer(application(invitation, keys, federation="x").to_json())) is Code.MALFORMED
    assert answer(application(invitation, keys).to_json())[0] == 200
    assert refusal(answer(application(invitation, Keys.make()).to_json())) is Code.USED
    late = there.invite("late", lasts=-1)
    assert refusal(answer(application(late, Keys.make()).to_json())) is Code.EXPIRED
    assert refusal(answer(application(there.invite("c"), keys).to_json())) is Code.KEY_TAKEN
    there.roster.revoke("a", now=time.time())
    assert refusal(answer(application(invitation, keys).to_json())) is Code.REVOKED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"null",
        b"{" * 5000,
        b" " * (MAX_APPLICATION + 1),
        b'{"hospital": NaN}',
    ],
)
def test_what_is_no_application(there: Coordinator, body: bytes) -> None:
    """Whatever comes, the answer is one fixed refusal."""
    assert refusal(there.enrolment().apply(body)) is Code.MALFORMED


def test_a_proof_by_others_is_no_application(there: Coordinator) -> None:
    """Whoever copies an application cannot put keys of his own into it; the token stays good."""
    invitation = there.invite("a")
    mine, his = (json.loads(application(invitation, Keys.make()).to_json()) for _ in range(2))
    for stolen in ("node-key", "identity-key", "node-proof", "identity-proof"):
        mixed = json.dumps(mine | {stolen: his[stolen]}).encode()
        assert refusal(there.enrolment().apply(mixed)) is Code.MALFORMED
    assert there.enrolment().apply(json.dumps(mine).encode())[0] == 200


def test_a_race_for_one_token(there: Coordinator) -> None:
    """One is welcome; Flower knows one node."""
    invitation, enrolment = there.invite("a"), there.enrolment()
    bodies = [application(invitation, Keys.make()).to_json() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(enrolment.apply, bodies))
    assert sorted(status for status, _ in answers) == [200, *[REFUSALS[Code.USED][0]] * 5]
    assert len(there.registry.nodes) == 1


def test_a_repeated_application_has_one_answer(there: Coordinator) -> None:
    """At once and later: the same number from Flower."""
    invitation, enrolment, keys = there.invite("a"), there.enrolment(), Keys.make()
    bodies = [application(invitation, keys).to_json() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = set(pool.map(enrolment.apply, bodies))
    assert len(answers) == 1
    assert len(there.registry.nodes) == 1


def test_flower_being_away_is_mended_by_the_next_try(
    there: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    """The hospital is told to come back, the log has why without a secret, and the node number comes."""
    invitation, keys = there.invite("a"), Keys.make()
    body = application(invitation, keys).to_json()
    away = coordinator_without_flower(there)
    with caplog.at_level(logging.INFO):
        assert refusal(away.enrolment().apply(body)) is Code.UNAVAILABLE
    assert "no line to Flower" in caplog.text
    assert repr(invitation.secret) not in caplog.text
    (entry,) = there.roster.entries()
    assert (entry.status, entry.node_id) == (Status.ENROLLED, 0)
    assert there.enrolment().apply(body)[0] == 200
    assert there.roster.entries()[0].node_id == 2**63


def coordinator_without_flower(there: Coordinator) -> Coordinator:
    """Return the same coordinator while Flower does not answer."""

    class Away(Registry):
        def register(self, node_key: bytes) -> int:
            raise ConnectionError("no line to Flower")

    return Coordinator(there.federation, there.roster, Away())


def test_a_broken_roster_is_the_coordinators_trouble(there: Coordinator) -> None:
    """A hospital hears that nobody can be enrolled now, and nothing of why."""
    body = application(there.invite("a"), Keys.make()).to_json()
    there.federation.roster.write_bytes(b"no database at all" * 100)
    assert refusal(there.enrolment().apply(body)) is Code.UNAVAILABLE


def test_vouches_are_taken_from_whom_they_are_by(there: Coordinator) -> None:
    """With a signed question; not another's, not another federation's, not altered, nothing unreadable."""
    keys = {name: Keys.make() for name in ("a", "b", "c")}
    for name, mine in keys.items():
        there.enrolment().apply(application(there.invite(name), mine).to_json())
    secret = {name: Identity(mine.identity.private_bytes_raw()) for name, mine in keys.items()}

    def word(by: str, federation: str = "demo", name: str = "") -> Vouch:
        return vouch(secret[by], federation, name or by, "c", secret["c"].public, "telephone", NOW)

    def ask(vouches: list[bytes], *, signed: list[bytes] | None = None) -> tuple[int, bytes]:
        question = RosterQuestion.sign(
            federation="demo",
            hospital="a",
            time=float(NOW),
            about=About(version="0.2.0", knows=("b",)),
            sign=keys["a"].identity.sign,
            vouches=vouches if signed is None else signed,
        )
        sent = question.model_copy(update={"vouches": tuple(vouches)})
        return there.enrolment(clock=lambda: NOW).tell_roster(sent.to_json())

    good = dump(word("a"))
    bad = [word("b"), word("b", name="a"), word("a", "other"), replace(word("a"), expires=NOW + 1)]
    status, body = ask([*map(dump, bad), b"no vouch"])
    assert (status, RosterAnswer.model_validate_json(body).vouches) == (200, ())
    assert refusal(ask([good], signed=[b"another"])) is Code.UNKNOWN
    assert refusal(ask([bytes(MOST_BYTES + 1)], signed=[])) is Code.MALFORMED
    assert refusal(ask([good] * (MOST_VOUCHES + 1), signed=[])) is Code.MALFORMED
    status, body = ask([good])
    assert (status, RosterAnswer.model_validate_json(body).vouches) == (200, (good,))
    there.roster.revoke("c", now=NOW)
    assert RosterAnswer.model_validate_json(ask([])[1]).vouches == ()


def test_what_a_hospital_says_of_itself_is_kept_where_it_is_proved(there: Coordinator) -> None:
    """Its last word; gone with the hospital; nothing that was altered on the way, and nothing strange."""
    keys = Keys.make()
    there.enrolment().apply(application(there.invite("a"), keys).to_json())

    def say(about: About, sent: dict[str, object] | None = None, at: float = float(NOW)) -> tuple[int, bytes]:
        sign = keys.identity.sign
        question = RosterQuestion.sign(federation="demo", hospital="a", time=at, about=about, sign=sign)
        body = json.loads(question.to_json())
        body["about"] |= sent or {}
        return there.enrolment(clock=lambda: at).tell_roster(json.dumps(body).encode())

    first, second = About(version="0.2.0"), About(version="0.3.0", knows=("b", "c"))
    assert say(first)[0] == 200
    assert there.roster.about() == {"a": first}
    assert refusal(say(second, {"knows": ["b"]})) is Code.UNKNOWN
    assert refusal(say(second, {"version": "\x1b[2J"})) is Code.MALFORMED
    assert there.roster.about() == {"a": first}
    assert say(second)[0] == 200
    assert there.roster.about() == {"a": second}
    there.roster.revoke("a", now=NOW)
    assert there.roster.about() == {}


def test_the_longest_question_and_answer_fit_their_bounds() -> None:
    """A hospital's words on 254 others, and everybody's on everybody, with names of 32 letters."""
    name, identity = "a" * LONGEST, Identity.make()
    one = dump(vouch(identity, name, name, name, identity.public, "in person", NOW))
    assert len(one) <= MOST_BYTES
    sign = Keys.make().identity.sign
    everybody = About(version="0" * LONGEST, knows=(name,) * 255)
    question = RosterQuestion.sign(
        federation=name, hospital=name, time=NOW, about=everybody, sign=sign, vouches=[one] * 255
    )
    assert len(question.to_json()) <= MAX_QUESTION
    keys = {f"{number:0{LONGEST}}": bytes(32) for number in range(255)}
    some = len(RosterAnswer(identity_keys=keys, vouches=(one,) * 255).to_json())
    none = len(RosterAnswer(identity_keys=keys).to_json())
    assert none + 254 * (some - none) <= MAX_ROSTER
