"""Hospitals that get to know each other: by telephone, in a conference, through others that vouch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import Result
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from typer.testing import CliRunner

from client.cli import app
from client.enrol import join
from client.home import Home, Keys
from client.node import desk_of
from common import wire
from common.identity import fingerprint
from common.secagg import aggregator, site
from common.secagg.encoding import dump, load
from common.secagg.identity import Identity
from common.secagg.messages import Advertisement
from common.secagg.numbers import Numbers, Policy
from tests.enrolling import Coordinator, application, coordinator, listening

RUN = "run-1"
INVENTED = ("st-clara", "st-david", "st-emil")


@pytest.fixture
def there(tmp_path: Path) -> Coordinator:
    """Return a new federation."""
    return coordinator(tmp_path / "demo")


@contextmanager
def online(there: Coordinator) -> Iterator[int]:
    """Serve enrolment and the roster; yield the port."""
    federation = there.federation
    with listening(there.enrolment(), federation.certificate, federation.key) as server:
        yield server.server_port


def joined(there: Coordinator, port: int, folder: Path, *names: str) -> dict[str, Home]:
    """Return hospitals that joined at that port."""
    return {name: join(replace(there.invite(name), port=port).encode(), folder / name) for name in names}


def invent(there: Coordinator, name: str) -> Identity:
    """Return the key of a hospital that nobody runs but the coordinator."""
    keys = Keys.make()
    there.enrolment().apply(application(there.invite(name), keys).to_json())
    return Identity(keys.identity.private_bytes_raw())


def tell(home: Home, *words: str, typed: str = "") -> Result:
    """Return what a command of a hospital's did."""
    return CliRunner().invoke(app, [*words, "--dir", str(home.directory)], input=typed)


def call(one: Home, other: Home) -> None:
    """Let two operators read out their fingerprints to each other: one call, both directions."""
    for here, there in ((one, other), (other, one)):
        assert tell(here, "confirm", there.settings.site, *there.fingerprint.split()).exit_code == 0


def known(home: Home) -> set[str]:
    """Return the other hospitals that count as such, as the coordinator's next message would find them."""
    return {name for name, peer in home.roster(home.peers()).peers.items() if peer.trusted} - {
        home.settings.site
    }


def asked(kind: str, secured: wire.Secured) -> Message:
    """Return one of the coordinator's messages to a hospital."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return wire.ask_secured(5, kind, secured, seconds=60.0)


def never(message: Message) -> Message:
    """Fail where a hospital is asked to train."""
    raise AssertionError("it must not train")


def deal(home: Home, there: Coordinator, crowd: dict[str, Identity], threshold: int) -> Message:
    """Return the hospital's reply to a slot with a crowd whose every key the coordinator has."""
    desk = desk_of(home)
    identities = there.roster.identity_keys()
    reply = desk.answer(asked(wire.ADVERTISE, wire.Secured(RUN, identities=identities)), never)
    told = [load(Advertisement, wire.read_secured(reply).answer)]
    for name, identity in crowd.items():
        member = site.Member(name, identity, desk.member.roster, Policy())
        told.append(site.advertise(site.join(member, RUN, 1), member))
    number = len(told)
    holders = aggregator.name_holders(RUN, 1, told, Numbers(number, threshold, number - 1))
    message = asked(wire.DEAL, wire.Secured(RUN, holders=dump(holders)))
    return desk_of(home).answer(message, never)


def test_one_telephone_call_does_not_confirm_invented_hospitals(there: Coordinator, tmp_path: Path) -> None:
    """Two real hospitals telephone; a cohort of the victim and inventions gets nothing, at any threshold."""
    with online(there) as port:
        homes = joined(there, port, tmp_path, "st-anna", "st-bern")
        crowd = {name: invent(there, name) for name in INVENTED}
        call(*homes.values())
        victim = homes["st-anna"]
        assert known(victim) == {"st-bern"}
        for threshold in (2, 3, 4):
            reply = deal(victim, there, crowd, threshold)
            assert reply.has_error()
            assert reply.error.code == wire.INSECURE
        pairs = (f"{name}={fingerprint(identity.public)}" for name, identity in crowd.items())
        assert tell(victim, "confirm", *pairs).exit_code == 0
    assert not deal(victim, there, crowd, 3).has_error(), "who confirms inventions by name is lost"


def test_asking_and_typing(there: Coordinator, tmp_path: Path) -> None:
    """What is read out is asked for hospital by hospital, in one line or two; a wrong one is asked again."""
    with online(there) as port:
        homes = joined(there, port, tmp_path, "st-anna", "st-bern", "st-clara", "st-david")
        bern, clara, david = (homes[name].fingerprint for name in ("st-bern", "st-clara", "st-david"))
        typed = f"{clara}\n{bern[:39]}\n{bern[40:]}\n{clara.upper()}\n\n"
        said = tell(homes["st-anna"], "confirm", typed=typed)
        assert said.exit_code == 0, said.output
        assert known(homes["st-anna"]) == {"st-bern", "st-clara"}
        assert "st-bern reads out" in said.output
        assert "Not confirmed. st-bern: the fingerprint is not of the key" in said.output
        told = tell(homes["st-anna"], "roster").output
        assert david[:19] not in said.output + told, "nobody can copy it from here"
        assert homes["st-anna"].fingerprint[:39] in said.output
        assert tell(homes["st-anna"], "confirm", "st-eve", *bern.split()).exit_code == 1
        chosen = tell(homes["st-bern"], "confirm", "st-david", typed=f"{david}\n")
    assert "st-anna reads out" not in chosen.output
    assert known(homes["st-bern"]) == {"st-david"}
    assert all(len(line) <= 80 for line in (said.output + told).splitlines() if "reads out" not in line)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (lambda whole: whole[:39], "is 32 characters long"),
        (lambda whole: f"{whole} 4f39", "is 68 characters long"),
        (lambda whole: whole[:-1] + "x", "has x in it"),
    ],
)
def test_a_slip_of_the_pen_is_no_alarm(
    there: Coordinator, tmp_path: Path, typed: Callable[[str], str], words: str
) -> None:
    """What is no whole fingerprint is told as that, and nobody is said to stand in between."""
    with online(there) as port:
        homes = joined(there, port, tmp_path, "st-anna", "st-bern")
        read_out = typed(homes["st-bern"].fingerprint)
        ended = tell(homes["st-anna"], "confirm", "st-bern", *read_out.split())
        asked_for = tell(homes["st-anna"], "confirm", typed=f"{read_out}\n\n\n").output
    assert words in str(ended.exception)
    assert words in " ".join(asked_for.split())
    assert "stand in between" not in str(ended.exception) + asked_for
    assert known(homes["st-anna"]) == set()


def test_another_key_is_told_in_plain_words(there: Coordinator, tmp_path: Path) -> None:
    """After st-bern joined anew, `status`, `roster` and `confirm` say so; confirming takes the new key."""
    with online(there) as port:
        homes = joined(there, port, tmp_path, "st-anna", "st-bern")
        anna, old = homes["st-anna"], homes["st-bern"]
        call(anna, old)
        there.roster.revoke("st-bern", now=time.time())
        new = joined(there, port, tmp_path / "anew", "st-bern")["st-bern"]
        shown = tell(anna, "roster").output
        assert "st-bern   a call. ANOTHER KEY is named now: see below" in shown
        assert "has joined anew, or somebody has put himself in its place" in " ".join(shown.split())
        assert "another key    st-bern; zamenis-hospital roster" in tell(anna, "status").output
        assert anna.peers().pinned["st-bern"].public == old.identity.public
        assert "The other key of st-bern is forgotten" in tell(anna, "confirm", "--reject", "st-bern").output
        assert "another key" not in tell(anna, "status").output
        call(anna, new)
        assert anna.peers().pinned["st-bern"].public == new.identity.public
        assert (
            "is forgotten, and not confirmed any more" in tell(anna, "confirm", "--reject", "st-bern").output
        )
    assert known(anna) == set()


def test_vouching_through_the_coordinator(there: Coordinator, tmp_path: Path) -> None:
    """Two called everybody and vouch; the others count without a call until one takes its word back."""
    names = ("st-anna", "st-bern", "st-clara", "st-david", "st-emil")
    with online(there) as port:
        homes = joined(there, port, tmp_path, *names)
        vouchers = ("st-anna", "st-bern")
        for one, other in combinations(names, 2):
            if one in vouchers:
                call(homes[one], homes[other])
        assert known(homes["st-clara"]) == set(vouchers)
        assert tell(homes["st-anna"], "vouch", "--all").exit_code == 0
        few = tell(homes["st-clara"], "roster").output
        assert "st-david  too few vouchers: st-anna; 1 more, or a call" in few
        assert "Not known yet: st-david, st-emil." in few
        said = tell(homes["st-bern"], "vouch", "st-clara", "st-david", "st-emil")
        assert "st-bern vouches for st-clara, st-david, st-emil, until 20" in said.output
        enough = tell(homes["st-clara"], "roster").output
        assert "st-david  vouchers: st-anna, st-bern" in enough
        lied = "If st-anna and st-bern both lied: 2 hospitals may be invented, st-david, st-emil."
        assert lied in " ".join(enough.split())
        assert known(homes["st-clara"]) == set(names) - {"st-clara"}
        assert known(homes["st-anna"]) == set(names) - {"st-anna"}
        assert tell(homes["st-bern"], "vouch", "--withdraw", "st-emil").exit_code == 0
        tell(homes["st-clara"], "roster")
        assert known(homes["st-clara"]) == {"st-anna", "st-bern", "st-david"}
        refused = tell(homes["st-clara"], "vouch", "st-david")
    assert "is not confirmed here" in str(refused.exception)


def test_an_operator_who_types_the_own_name_is_told_so(there: Coordinator, tmp_path: Path) -> None:
    """It is no hospital that the coordinator keeps silent about."""
    with online(there) as port:
        home = joined(there, port, tmp_path, "anna", "bern")["anna"]
        done = tell(home, "confirm", "anna", *home.fingerprint.split())
    assert "anna: is this hospital itself" in str(done.exception)
