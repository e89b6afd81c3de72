"""A malicious coordinator before hospitals' own desks, vaults and policies."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.node import vault_of
from client.policy import guarded
from common import wire
from common.secagg.identity import Identity
from common.secagg.messages import MASKED, MaskRequest, UnmaskRequest
from common.secagg.numbers import Numbers
from tests.client.desks import RUN, Desks
from tests.common.secagg.adversary import spread
from tests.common.secagg.federation import unmask_request

LAX = guarded().replace("low-threshold = false", "low-threshold = true").replace("cohort = 3", "cohort = 2")
"""Allows whatever the inequalities bear, so that no second wall stands before the first."""


def test_naming_another_key_opens_nobodys_update(tmp_path: Path) -> None:
    """Thirteen at t = 8: the victim masks with eight, the twelve with all.

    Then another run's `advertise` names another key for the victim, by which its signature on the twelve's
    plan is forged.
    """
    desks, forged = Desks(tmp_path, 13, LAX), Identity.make()
    victim, *others = desks.names
    holders = desks.holders(numbers=Numbers(13, 8, 12))
    requests = desks.requests(holders, desks.dealings(holders))
    everyone = requests[victim].plan
    plan = replace(everyone, manifests=everyone.manifests[:8])
    sealed = {peer: requests[victim].sealed[peer] for peer in plan.cohort[1:]}
    masked = desks.masked(victim, MaskRequest(plan, sealed))
    signatures = {name: desks.masked(name, requests[name]).signature for name in others}
    signatures[victim] = forged.sign(MASKED, RUN, 1, everyone.digest())
    named, replies = spread(plan.cohort[1:], others, 8, 5), {}
    for name in others:
        desks.advertise(name, {**desks.public, victim: forged.public})
        replies[name] = desks.unmask(name, unmask_request(signatures, tuple(sorted(named[name]))))
    assert masked.site == victim
    for reply in replies.values():
        assert reply.error.code == wire.INSECURE
        assert victim in str(reply.error.reason)


def play(desks: Desks) -> tuple[dict[str, MaskRequest], UnmaskRequest]:
    """Return what an honest slot, up to unmasking, asked of everybody, and what it would ask next."""
    holders = desks.holders()
    requests = desks.requests(holders, desks.dealings(holders))
    signatures = {name: desks.masked(name, request).signature for name, request in requests.items()}
    return requests, unmask_request(signatures, ())


def allow(desks: Desks, name: str, old: str, new: str) -> None:
    """Change one line of a hospital's policy.toml."""
    path = desks.homes[name].policy
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


WITHDRAWN = [
    ('messages = ["describe", "train"]', "messages = []", "messages"),
    ("min-cohort = 3 ", "min-cohort = 50 ", "fewer honest sites"),
]


@pytest.mark.parametrize(("old", "new", "words"), WITHDRAWN, ids=["messages", "min-cohort"])
def test_a_policy_withdrawn_stops_what_was_begun(tmp_path: Path, old: str, new: str, words: str) -> None:
    """Between masking and unmasking: no stored vector leaves again, nothing is unmasked or dealt."""
    desks = Desks(tmp_path, 5)
    requests, asked = play(desks)
    first, second, *_ = desks.names
    answered = desks.unmask(second, asked)
    assert not answered.has_error()
    allow(desks, first, old, new)
    allow(desks, second, old, new)
    replies = [
        desks.train(first, requests[first]),
        desks.unmask(first, asked),
        desks.unmask(second, asked),
        desks.deal(first, desks.holders(2)) if words != "messages" else desks.ask(first, wire.ADVERTISE),
    ]
    for reply in replies:
        assert reply.has_error()
        assert words in str(reply.error.reason)
    assert desks.trained == desks.names
    assert not desks.ask(first, wire.FINISH).has_error()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("max-parameters = 50000000", "max-parameters = 3", "max-parameters"),
        ('"reptile"', '"fedavg"', "algorithms"),
        ('"mlp"', '"conv4"', "models"),
    ],
)
def test_every_key_of_a_policy_withdrawn_stops_what_was_begun(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    """What would not be trained for now is neither sent again nor unmasked."""
    desks = Desks(tmp_path, 5)
    requests, asked = play(desks)
    first = desks.names[0]
    allow(desks, first, old, new)
    for reply in (desks.train(first, requests[first]), desks.unmask(first, asked)):
        assert reply.error.code == wire.FORBIDDEN
        assert key in str(reply.error.reason)


def test_an_operator_rejoins_after_a_snapshot(tmp_path: Path) -> None:
    """`zamenis-hospital rejoin`: what was open is given up, the key is new, and the run goes on with it."""
    desks = Desks(tmp_path, 5)
    _, asked = play(desks)
    first = desks.names[0]
    before = desks.advertise(first)
    done = CliRunner().invoke(app, ["rejoin", "--dir", str(desks.homes[first].directory)])
    assert "1 unfinished meta-trainings go on with new keys" in done.output
    refused = desks.unmask(first, asked)
    assert "the slot is not open here" in str(refused.error.reason)
    after = desks.advertise(first)
    assert after.c != before.c
    assert after.epoch > before.epoch
    holders = desks.holders(2)
    assert first in desks.requests(holders, desks.dealings(holders))


def test_a_restored_backup_never_answers_a_slot_twice(tmp_path: Path) -> None:
    """Brought back from before it unmasked, a hospital gives no second answer, to another list of dropped.

    The backup is of an hour ago, and was copied over the vault, which thus is the same file.
    """
    desks = Desks(tmp_path, 5)
    _, asked = play(desks)
    first, last = desks.names[0], desks.names[-1]
    path = vault_of(desks.homes[first]).path
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE file SET at = at - 3600")
    backup = path.read_bytes()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE file SET at = at + 3600")
    assert not desks.unmask(first, asked).has_error()
    fewer = {name: signature for name, signature in asked.survivors.items() if name != last}
    other = UnmaskRequest(RUN, asked.slot, fewer, (last,))
    assert "another unmask request was answered" in str(desks.unmask(first, other).error.reason)
    path.write_bytes(backup)
    assert "the slot is not open here" in str(desks.unmask(first, other).error.reason)


def test_a_threshold_below_the_default_is_not_dealt_for(tmp_path: Path) -> None:
    """Six at t = 4 keep the inequalities; a new hospital's policy asks for the default, 5."""
    desks = Desks(tmp_path, 6, guarded().replace("min-cohort = 3", "min-cohort = 2"))
    first = desks.names[0]
    reply = desks.deal(first, desks.holders(numbers=Numbers(6, 4, 5)))
    assert "below the default" in str(reply.error.reason)
    allow(desks, first, "low-threshold = false", "low-threshold = true")
    assert not desks.deal(first, desks.holders(numbers=Numbers(6, 4, 5))).has_error()
