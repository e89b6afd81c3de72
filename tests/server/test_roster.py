"""The roster: who may enter, once, under which name and keys, for how long; from several processes."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from client.home import Keys
from common.enrolment import Application
from common.errors import ConfigError, EnrolmentError, EnrolmentRefused
from common.identity import fingerprint
from common.secagg.encoding import load
from common.secagg.identity import Identity
from common.secagg.vouching import Vouch, vouch
from server.database import VERSION
from server.entry import Entry, Status
from server.roster import Roster

NOW, END = 1_000.0, 2_000


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    """Return an empty roster."""
    return Roster(tmp_path / "roster.db")


def apply(hospital: str, secret: bytes, keys: Keys) -> Application:
    """Return a proven application."""
    return Application.sign(
        federation="demo", hospital=hospital, secret=secret, node=keys.node, identity=keys.identity
    )


def enter(roster: Roster, hospital: str, *, approval: bool = False, keys: Keys | None = None) -> Entry:
    """Admit and enrol `hospital`."""
    secret = roster.admit(hospital, expires_at=END, now=NOW)
    return roster.enrol(apply(hospital, secret, keys or Keys.make()), now=NOW, approval=approval)


def refusal(roster: Roster, application: Application, *, now: float = NOW) -> str:
    """Return the code by which `application` is refused."""
    with pytest.raises(EnrolmentRefused) as caught:
        roster.enrol(application, now=now, approval=False)
    return caught.value.code


def test_a_hospital_enters(roster: Roster) -> None:
    """Invited, then enrolled, with its keys; another process's view is the same."""
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    (invited,) = roster.entries()
    assert (invited.status, invited.expires_at, invited.fingerprint) == (Status.INVITED, END, "")
    application = apply("st-anna", secret, Keys.make())
    entry = roster.enrol(application, now=NOW + 1, approval=False)
    assert entry.status is Status.ENROLLED
    assert (entry.node_key, entry.identity_key) == (application.node_key, application.identity_key)
    assert (entry.admitted_at, entry.applied_at, entry.settled_at) == (NOW, NOW + 1, NOW + 1)
    assert entry.fingerprint == fingerprint(application.identity_key)
    assert Roster(roster.path).entries() == (entry,)


def test_the_same_application_has_the_same_answer(roster: Roster) -> None:
    """Also after the token's end, since the first answer may have been lost."""
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    keys = Keys.make()
    first = roster.enrol(apply("st-anna", secret, keys), now=NOW, approval=False)
    assert roster.enrol(apply("st-anna", secret, keys), now=END + 9, approval=False) == first


def test_a_token_is_used_once(roster: Roster) -> None:
    """Other keys, either of them, are told that it was used."""
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    keys, other = Keys.make(), Keys.make()
    roster.enrol(apply("st-anna", secret, keys), now=NOW, approval=False)
    for second in (other, Keys(keys.node, other.identity), Keys(other.node, keys.identity)):
        again = apply("st-anna", secret, second)
        assert refusal(roster, again) == "used"


def test_an_expired_token_and_a_renewed_one(roster: Roster) -> None:
    """It ends in its second; another one voids it, and is good."""
    old = roster.admit("st-anna", expires_at=END, now=NOW)
    keys = Keys.make()
    assert refusal(roster, apply("st-anna", old, keys), now=END) == "expired"
    assert roster.entries()[0].expired(END)
    assert not roster.entries()[0].expired(END - 1)
    new = roster.admit("st-anna", expires_at=END + 50, now=END)
    assert refusal(roster, apply("st-anna", old, keys), now=END) == "unknown"
    assert roster.enrol(apply("st-anna", new, keys), now=END, approval=False).status is Status.ENROLLED


def test_who_does_not_know_the_secret_learns_nothing(roster: Roster) -> None:
    """An unknown hospital and every state of a known one look the same, code and words."""
    enter(roster, "enrolled")
    enter(roster, "revoked")
    roster.revoke("revoked", now=NOW)
    enter(roster, "rejected", approval=True)
    roster.reject("rejected", now=NOW)
    enter(roster, "pending", approval=True)
    roster.admit("invited", expires_at=END, now=NOW)
    roster.admit("expired", expires_at=0, now=NOW)
    answers = set()
    for hospital in ("nobody", *(entry.hospital for entry in roster.entries())):
        with pytest.raises(EnrolmentRefused) as caught:
            roster.enrol(apply(hospital, bytes(32), Keys.make()), now=NOW, approval=False)
        answers.add((caught.value.code, str(caught.value)))
    assert [code for code, _ in answers] == ["unknown"]


def test_a_secret_opens_one_name_only(roster: Roster) -> None:
    """Not another hospital's, and not the same in another spelling."""
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    roster.admit("other", expires_at=END, now=NOW)
    for name in ("other", "St-Anna"):
        wrong = apply(name, secret, Keys.make())
        assert refusal(roster, wrong) == "unknown"


def test_approval(roster: Roster) -> None:
    """Pending until accepted or rejected; the same application then has the other answer."""
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    application = apply("st-anna", secret, Keys.make())
    for _ in range(2):
        assert roster.enrol(application, now=NOW, approval=True).status is Status.PENDING
    assert roster.identity_keys() == {}
    assert roster.accept("ST-anna", now=NOW + 5).settled_at == NOW + 5
    assert roster.enrol(application, now=END, approval=True).status is Status.ENROLLED
    assert roster.identity_keys() == {"st-anna": application.identity_key}
    enter(roster, "other", approval=True)
    roster.reject("other", now=NOW)
    for settle in (roster.accept, roster.reject):
        with pytest.raises(EnrolmentError, match="other is rejected: it cannot become"):
            settle("other", now=NOW)
    with pytest.raises(EnrolmentError, match="nobody: there is no such hospital"):
        roster.accept("nobody", now=NOW)


def test_revoked_and_admitted_again(roster: Roster) -> None:
    """The old token says revoked; the new one wants new keys."""
    keys = Keys.make()
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    roster.enrol(apply("st-anna", secret, keys), now=NOW, approval=False)
    roster.register("st-anna", lambda _: 7)
    assert roster.revoke("st-anna", now=NOW).node_id == 7
    assert refusal(roster, apply("st-anna", secret, keys)) == "revoked"
    with pytest.raises(EnrolmentError, match="st-anna is revoked"):
        roster.revoke("st-anna", now=NOW)
    new = roster.admit("st-anna", expires_at=END, now=NOW)
    assert refusal(roster, apply("st-anna", new, keys)) == "key-taken"
    entry = roster.enrol(apply("st-anna", new, Keys.make()), now=NOW, approval=False)
    assert (entry.status, entry.node_id) == (Status.ENROLLED, 0)


def test_who_may_not_be_admitted_again(roster: Roster) -> None:
    """An enrolled or pending hospital, another spelling, a name against the rule."""
    enter(roster, "enrolled")
    enter(roster, "pending", approval=True)
    for name, words in (
        ("enrolled", "Revoke it first"),
        ("pending", "Accept or reject it first"),
        ("Enrolled", "is known as enrolled"),
        ("a/b", "letters, digits and hyphens"),
    ):
        with pytest.raises(EnrolmentError, match=words):
            roster.admit(name, expires_at=END, now=NOW)


def test_no_key_under_two_names(roster: Roster) -> None:
    """Either key; and the refused token is still good with keys of its own."""
    keys = Keys.make()
    enter(roster, "first", keys=keys)
    secret = roster.admit("second", expires_at=END, now=NOW)
    for mixed in (Keys(keys.node, Keys.make().identity), Keys(Keys.make().node, keys.identity)):
        again = apply("second", secret, mixed)
        assert refusal(roster, again) == "key-taken"
    mended = roster.enrol(apply("second", secret, Keys.make()), now=NOW, approval=False)
    assert mended.status is Status.ENROLLED


def test_node_numbers(roster: Roster) -> None:
    """Any unsigned 64-bit number, asked for once by the node's key; 0 is nobody; a failure leaves none."""
    keys: list[bytes] = []

    def register(key: bytes) -> int:
        keys.append(key)
        return 2**64 - len(keys)

    def away(key: bytes) -> int:
        raise ConnectionError

    entry = enter(roster, "st-anna")
    with pytest.raises(ConnectionError):
        roster.register("st-anna", away)
    assert roster.by_node_id(0) is None
    for _ in range(2):
        assert roster.register("st-anna", register).node_id == 2**64 - 1
    assert keys == [entry.node_key]
    enter(roster, "other")
    assert roster.register("other", register).node_id == 2**64 - 2
    found = roster.by_node_id(2**64 - 1)
    assert found is not None
    assert found.hospital == "st-anna"
    assert roster.by_node_id(5) is None


def test_only_an_enrolled_hospital_has_a_node(roster: Roster) -> None:
    """A hospital revoked between its enrolment and its node's registration never reaches Flower."""
    enter(roster, "st-anna")
    roster.revoke("st-anna", now=NOW)
    with pytest.raises(EnrolmentRefused, match="has revoked this hospital"):
        roster.register("st-anna", lambda _: pytest.fail("a revoked hospital was registered"))
    enter(roster, "pending", approval=True)
    with pytest.raises(EnrolmentError, match="pending is pending: only an enrolled"):
        roster.register("pending", lambda _: pytest.fail("a hospital that waits was registered"))


def test_only_a_digest_of_the_secret_is_kept(roster: Roster) -> None:
    """And the file is its owner's alone, with whatever SQLite lays beside it."""
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    files = list(roster.path.parent.iterdir())
    assert all(secret not in file.read_bytes() for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)


def test_another_version_is_told(roster: Roster) -> None:
    """A roster of later software is left alone."""
    with sqlite3.connect(roster.path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(ConfigError, match=rf"roster\.db: is a roster of version {VERSION + 1}"):
        Roster(roster.path)


def test_two_uses_of_one_token_at_once(roster: Roster) -> None:
    """Of many threads with keys of their own, one enters and all others are told that it was used."""
    secret = roster.admit("st-anna", expires_at=END, now=NOW)
    applications = [apply("st-anna", secret, Keys.make()) for _ in range(8)]

    def attempt(application: Application) -> str:
        try:
            return roster.enrol(application, now=NOW, approval=False).status
        except EnrolmentRefused as error:
            return error.code

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(attempt, applications))
    assert answers == ["enrolled", *["used"] * 7]


def _admit_many(path: Path, mine: int) -> None:
    """Open the roster and admit hospitals, in a process of its own."""
    roster = Roster(path)
    for number in range(10):
        roster.admit(f"h-{mine}-{number}", expires_at=END, now=NOW)


def test_several_processes_make_and_fill_one_roster(tmp_path: Path) -> None:
    """Nothing is lost, whoever makes the file first."""
    spawn = multiprocessing.get_context("spawn")
    path = tmp_path / "roster.db"
    writers = [spawn.Process(target=_admit_many, args=(path, mine)) for mine in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(Roster(path).entries()) == 30


def word(voucher: Keys, name: str, subject: str, key: bytes, serial: int = int(NOW)) -> Vouch:
    """Return a hospital's signed word on another."""
    identity = Identity(voucher.identity.private_bytes_raw())
    return vouch(identity, "demo", name, subject, key, "telephone", serial)


def test_vouches_are_kept_once_for_each_pair(roster: Roster) -> None:
    """The last word on who is known, told while both are enrolled, and gone with either."""
    keys = {name: Keys.make() for name in ("a", "b", "c")}
    for name, mine in keys.items():
        enter(roster, name, keys=mine)
    first, later = (word(keys["a"], "a", "b", b"k" * 32, serial) for serial in (5, 6))
    roster.take_vouches("a", [first, word(keys["a"], "a", "nobody", b"k" * 32)])
    roster.take_vouches("b", [word(keys["b"], "b", "a", b"k" * 32)])
    assert [load(Vouch, one).subject for one in roster.vouches()] == ["b", "a"]
    roster.take_vouches("a", [later])
    roster.take_vouches("a", [first, replace(first, serial=2**63)])
    assert [load(Vouch, one).serial for one in roster.vouches()] == [6, int(NOW)]
    roster.take_vouches("a", [word(keys["a"], "a", "c", b"k" * 32)])
    roster.revoke("b", now=NOW)
    assert [load(Vouch, one).subject for one in roster.vouches()] == ["c"]


def test_a_roster_of_0_1_0_is_carried_over(tmp_path: Path) -> None:
    """Who is enrolled stays; there is room for vouches from then on."""
    path = tmp_path / "roster.db"
    old = Roster(path)
    entry = enter(old, "st-anna")
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE vouch")
        database.execute("DROP TABLE about")
        database.execute("PRAGMA user_version = 1")
        database.commit()
    roster = Roster(path)
    assert roster.entries() == (entry,)
    assert roster.vouches() == ()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
