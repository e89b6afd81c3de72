"""What an operator is told of hospitals that wait for a word, at nodes as their commands have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from typer.testing import CliRunner

from client.allow import allow, waiting
from client.cli import app
from client.cohorts import COLUMNS, Cohort, Cohorts, Question, Waits
from client.policy import Policy, guarded
from client.vault import Vault
from common import wire
from common.config import load
from common.secagg import aggregator
from common.secagg.encoding import dump
from common.secagg.encoding import load as read
from common.secagg.identity import Identity, Peer
from common.secagg.messages import PUBLIC, REHEARSAL
from common.secagg.reasons import Reason, refusal
from common.secagg.rehearsal import Rehearsed
from tests.client.desks import PARAMETERS, SETTINGS, Desks
from tests.common.secagg.federation import refused as is_refused


def tell(desks: Desks, *words: str, answer: str = "") -> str:
    """Return what a command of the first hospital's prints."""
    command = [*words, "--dir", str(desks.homes[desks.names[0]].directory)]
    return CliRunner().invoke(app, command, input=answer).output


def refused(desks: Desks, run: str, named: dict[str, bytes]) -> str:
    """Return why the first hospital does not begin a run over these; nothing where it does."""
    desks.run = run
    reply = desks.ask(desks.names[0], wire.ADVERTISE, identities=named)
    return str(reply.error.reason) if reply.has_error() else ""


@pytest.fixture
def desks(tmp_path: Path) -> Desks:
    """Return five hospitals whose first has masked in a training over all of them."""
    desks = Desks(tmp_path, 5)
    holders = desks.holders()
    requests = desks.requests(holders, desks.dealings(holders))
    assert not desks.train(desks.names[0], requests[desks.names[0]]).has_error()
    return desks


def test_a_hospital_that_left_is_told_of_and_allowed(desks: Desks) -> None:
    """By name, with what the difference gives away; the word holds for trainings to come."""
    assert "waits" not in tell(desks, "status")
    assert "Nothing waits" in tell(desks, "allow")
    without = {name: key for name, key in desks.public.items() if name != "h004"}
    assert str(refusal(Reason.WAITS_FOR_ALLOW)) in refused(desks, "run-2", without)
    assert "sums over h000, h001, h002, h003; zamenis-hospital allow" in tell(desks, "status")
    told = tell(desks, "allow", answer="n\n")
    assert "summed before over h000, h001, h002, h003, h004: h004 left since." in " ".join(told.split())
    assert "can subtract them" in told
    assert refused(desks, "run-2", without)
    assert "Allowed" in tell(desks, "allow", answer="y\n")
    assert "waits" not in tell(desks, "status")
    assert not refused(desks, "run-2", without)
    assert not refused(desks, "run-3", without)


def test_the_word_covers_what_the_operator_was_shown_and_no_more(desks: Desks) -> None:
    """While he is at the telephone about one that left, a sum is made over all but that one and another."""
    first = desks.homes["h000"]
    without = {name: key for name, key in desks.public.items() if name != "h004"}
    assert refused(desks, "run-2", without)
    (shown,) = waiting(first)
    desks.names, desks.public, desks.run = ["h000", "h001", "h002"], dict(list(without.items())[:3]), "run-3"
    desks.size, desks.phi = 3, desks.phi + 1
    holders = desks.holders()
    requests = desks.requests(holders, desks.dealings(holders))
    assert not desks.train("h000", requests["h000"]).has_error()
    allow(first, shown)
    assert str(refusal(Reason.WAITS_FOR_ALLOW)) in refused(desks, "run-2", without)


def test_hospitals_that_nobody_confirmed_make_no_difference(desks: Desks) -> None:
    """Three inventions in one hospital's place are one hospital's difference."""
    named = {name: key for name, key in desks.public.items() if name != "h004"}
    named |= {f"new-{number}": Identity.make().public for number in range(3)}
    assert str(refusal(Reason.WAITS_FOR_ALLOW)) in refused(desks, "run-2", named)
    assert "joined since" in tell(desks, "allow", answer="n\n")


def test_a_run_that_never_masked_is_no_earlier_one(desks: Desks) -> None:
    """Two of five left: allowed; the one that came to nothing in between is not compared with."""
    names = desks.names
    assert not refused(desks, "run-2", {name: desks.public[name] for name in names[:3]})
    assert not refused(desks, "run-3", {name: desks.public[name] for name in (*names[:2], names[4])})


def test_refusals_do_not_fill_the_memory(desks: Desks) -> None:
    """Of cohorts that nothing came of the last is kept: a coordinator cannot bury the operator."""
    for number in range(20):
        named = {**desks.public, f"new-{number}": Identity.make().public}
        assert refused(desks, f"run-{number}", named)
    told = " ".join(tell(desks, "status").split())
    assert "waits sums over h000, h001, h002, h003, h004, new-19; zamenis-hospital allow fingerprint" in told


def test_runs_within_a_month_are_bounded(desks: Desks) -> None:
    """Those that came to nothing count as well, and finished ones."""
    policy = desks.homes[desks.names[0]].policy
    policy.write_text(policy.read_text().replace("max-trainings = 1000", "max-trainings = 3"))
    answers = [refused(desks, f"run-{number}", desks.public) for number in (2, 3, 4)]
    assert answers[:2] == ["", ""]
    assert "max-trainings in its policy.toml" in answers[2]
    assert not refused(desks, "run-3", desks.public)


def test_a_run_has_no_more_sums_than_rounds_are_allowed(tmp_path: Path) -> None:
    """Whatever round its messages say they are of, and whatever weights they bring: the third is refused."""
    policy = guarded().replace("max-rounds = 1000", "max-rounds = 2")
    desks = Desks(tmp_path, 3, policy=policy)
    desks.config = load(None, [*SETTINGS, "training.rounds=2"])
    for slot in (1, 2):
        desks.phi = torch.full((PARAMETERS,), 1e-6 * slot)
        assert desks.mean(slot).size == PARAMETERS
    holders = desks.holders(3)
    requests = desks.requests(holders, desks.dealings(holders))
    reply = desks.train(desks.names[0], requests[desks.names[0]])
    assert "max-rounds in its policy.toml" in wire.words_of(reply)
    assert len(desks.trained) == 2 * 3


def test_rehearsals_within_a_month_are_bounded_beside_trainings(desks: Desks) -> None:
    """A coordinator cannot fill a vault with them, nor a liar use up trainings by making them needed."""
    policy = desks.homes[desks.names[0]].policy
    policy.write_text(policy.read_text().replace("max-trainings = 1000", "max-trainings = 3"))
    answers = [refused(desks, f"{REHEARSAL}{number}", desks.public) for number in range(4)]
    assert answers[:3] == ["", "", ""]
    assert "max-trainings in its policy.toml" in answers[3]
    assert [refused(desks, f"run-{number}", desks.public) for number in (2, 3)] == ["", ""]


def rehearsed(desks: Desks, number: int) -> Message:
    """Return the first hospital's reply in a rehearsal by all."""
    desks.run = f"{REHEARSAL}{number}"
    holders = desks.holders()
    asked = aggregator.mask_requests(holders, desks.dealings(holders), PUBLIC, desks.layout)
    return desks.ask(desks.names[0], wire.REHEARSE, request=dump(asked[desks.names[0]]))


def test_a_rehearsed_vector_travels_once_and_within_the_bound(desks: Desks) -> None:
    """Beside what it was masked with, not within; a longer one than max-parameters is refused by that key."""
    secured, vector = wire.read_masked(rehearsed(desks, 1))
    assert len(vector) == desks.layout.packed_bytes
    assert read(Rehearsed, secured.answer).masked.vector == b""
    policy = desks.homes[desks.names[0]].policy
    policy.write_text(policy.read_text().replace("max-parameters = 50000000", "max-parameters = 39"))
    beyond = rehearsed(desks, 2)
    assert beyond.error.code == wire.FORBIDDEN
    assert "max-parameters" in str(beyond.error.reason)


def test_a_run_that_ended_is_ended_and_one_that_nobody_began_deals_nothing(desks: Desks) -> None:
    """What ends one run leaves the others; holders of a run that this hospital never heard of are strange."""
    first, ended, other = desks.names[0], desks.run, "run-2"
    assert not refused(desks, other, desks.public)
    holders = desks.holders(slot=1)
    desks.run = ended
    assert not desks.ask(first, wire.FINISH).has_error()
    assert str(refusal(Reason.FINISHED_RUN)) in refused(desks, ended, desks.public)
    assert not refused(desks, other, desks.public)
    desks.run = "run-3"
    reply = desks.deal(first, holders)
    assert reply.error.code == wire.INSECURE


FIVE = Cohort({f"h{number}": Peer(bytes([number]) * 32, confirmed=True) for number in range(5)})
SIX = Cohort({**FIVE.hospitals, "h5": Peer(bytes([5]) * 32, confirmed=True)})
TRAINED, SUMMED = Question(b"weights", "meta-1", 1), Question(COLUMNS, "", 0)
Memory = Callable[..., None]


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    """Return what calls a method of one hospital's memory, each in a transaction of its own."""
    vault = Vault(tmp_path / "vault.db")

    def call(method: Callable[..., None], *arguments: object, policy: Policy | None = None) -> None:
        with vault.cohorts(policy or Policy()) as cohorts:
            method(cohorts, *arguments)

    return call


def of(cohort: Cohort, names: Iterable[str] = ()) -> dict[str, bytes]:
    """Return hospitals of a cohort with their keys, by default all."""
    return {name: cohort.hospitals[name].public for name in names or cohort.hospitals}


def test_the_same_weights_are_masked_for_the_same_hospitals_alone(memory: Memory) -> None:
    """Whether in this slot or a later one of the run; other weights are, or another round."""
    memory(Cohorts.begin, "run-1", FIVE)
    memory(Cohorts.mask, "run-1", 1, TRAINED, of(FIVE))
    memory(Cohorts.mask, "run-1", 2, TRAINED, of(FIVE))
    four = of(FIVE, ["h0", "h1", "h2", "h3"])
    is_refused(Reason.SAME_WEIGHTS, memory, Cohorts.mask, "run-1", 3, TRAINED, four)
    memory(Cohorts.mask, "run-1", 3, Question(b"weights", "meta-1", 2), four)
    memory(Cohorts.mask, "run-1", 4, Question(b"others", "meta-1", 1), four)
    strange = four | {"h4": bytes(32)}
    is_refused(Reason.NOT_NAMED, memory, Cohorts.mask, "run-1", 5, Question(b"third", "meta-1", 3), strange)


def test_a_sum_opens_over_the_same_hospitals_alone(memory: Memory) -> None:
    """Of a slot that was masked in; a run that nobody began has none."""
    memory(Cohorts.begin, "run-1", FIVE)
    memory(Cohorts.mask, "run-1", 1, TRAINED, of(FIVE))
    four = ["h0", "h1", "h2", "h3"]
    is_refused(Reason.SLOT_CLOSED, memory, Cohorts.unmask, "run-1", 2, four)
    is_refused(Reason.NOT_NAMED, memory, Cohorts.unmask, "run-2", 1, four)
    memory(Cohorts.unmask, "run-1", 1, four)
    memory(Cohorts.unmask, "run-1", 1, four)
    memory(Cohorts.mask, "run-1", 2, Question(b"weights", "meta-2", 1), of(FIVE))
    is_refused(Reason.SAME_WEIGHTS, memory, Cohorts.unmask, "run-1", 2, [*four, "h4"])


def test_columns_summed_over_other_hospitals_wait_and_after_a_word_are_answered(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator is told whom it is about; the word is for what was before it and not for what comes."""
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    small = Policy(min_difference=1)  # so that columns alone decide
    memory(Cohorts.begin, "run-1", FIVE, policy=small)
    memory(Cohorts.mask, "run-1", 1, SUMMED, of(FIVE), policy=small)
    now += 1
    memory(Cohorts.begin, "run-2", SIX, policy=small)
    with pytest.raises(Waits) as caught:
        memory(Cohorts.mask, "run-2", 1, SUMMED, of(SIX), policy=small)
    assert (caught.value.reason, caught.value.cohort) == (Reason.WAITS_FOR_ALLOW, SIX)
    memory(Cohorts.wait, SIX, policy=small)
    memory(lambda cohorts: [cohorts.allow(one) for one in cohorts.waiting()], policy=small)
    now += 1
    memory(Cohorts.mask, "run-2", 1, SUMMED, of(SIX), policy=small)
    memory(Cohorts.unmask, "run-2", 1, SIX.hospitals, policy=small)
    with pytest.raises(Waits):
        memory(Cohorts.mask, "run-1", 2, SUMMED, of(FIVE), policy=small)


def test_a_word_for_columns_does_not_open_a_training_over_others(memory: Memory) -> None:
    """The same weights are the same, whatever was allowed since."""
    memory(Cohorts.begin, "run-1", FIVE)
    memory(Cohorts.mask, "run-1", 1, TRAINED, of(FIVE))
    memory(Cohorts.wait, FIVE)
    memory(lambda cohorts: [cohorts.allow(one) for one in cohorts.waiting()])
    four = of(FIVE, ["h0", "h1", "h2", "h3"])
    is_refused(Reason.SAME_WEIGHTS, memory, Cohorts.mask, "run-1", 2, TRAINED, four)
    memory(Cohorts.unmask, "run-1", 1, four)
    memory(Cohorts.mask, "run-1", 3, TRAINED, of(FIVE))
    is_refused(Reason.SAME_WEIGHTS, memory, Cohorts.unmask, "run-1", 3, FIVE.hospitals)
