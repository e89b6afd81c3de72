"""Joining over real TLS: once and again, and one clear error for everything that is wrong."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.enrol import join
from client.home import Home
from client.policy import policy_of
from common.enrolment import MAX_ANSWER, Greeting
from common.errors import EnrolmentError, EnrolmentPending, EnrolmentRefused
from common.invitation import Invitation
from common.secagg.identity import Peer
from common.wire import PROTOCOL
from server.entry import Status
from tests.enrolling import Coordinator, Listener, coordinator, listening

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def there(tmp_path: Path) -> Coordinator:
    """Return a new federation."""
    return coordinator(tmp_path / "demo")


@contextmanager
def online(there: Coordinator, host: str = "127.0.0.1", protocol: int = PROTOCOL) -> Iterator[Listener]:
    """Serve the federation's enrolment with its own certificate."""
    federation = there.federation
    with listening(there.enrolment(protocol), federation.certificate, federation.key, host) as server:
        yield server


def token(invitation: Invitation, server: Listener) -> str:
    """Return the token for the port that the system gave."""
    return replace(invitation, port=server.server_port).encode()


def left(folder: Path) -> list[str]:
    """Return what lies in `folder` besides the federation."""
    return sorted(path.name for path in folder.iterdir() if path.name != "demo")


def test_a_hospital_joins(there: Coordinator, tmp_path: Path) -> None:
    """Its folder holds the CA, the node's number, the peers, and keys whose public halves are enrolled."""
    with online(there) as server:
        first = join(token(there.invite("st-anna"), server), tmp_path / "anna")
        second = join(token(there.invite("st-olaf"), server), tmp_path / "olaf")
    assert Home.load(tmp_path / "olaf") == second
    assert second.ca.read_bytes() == there.federation.ca.read_bytes()
    entries = {entry.hospital: entry for entry in there.roster.entries()}
    for home, name in ((first, "st-anna"), (second, "st-olaf")):
        assert home.settings.site == name
        assert home.settings.node_id == entries[name].node_id
        own = home.keys().identity.public_key().public_bytes_raw()
        assert entries[name].identity_key == own
    assert first.peers().pinned == {}
    assert second.peers().pinned == {"st-anna": Peer(entries["st-anna"].identity_key)}
    assert policy_of(second.policy).explain is False
    assert second.settings.port == server.server_port
    assert left(tmp_path) == ["anna", "olaf"]


def test_over_ipv6_and_by_name(tmp_path: Path) -> None:
    """A literal address stands in brackets; the certificate names this machine anyway."""
    there = coordinator(tmp_path / "demo", host="::1")
    with online(there, "127.0.0.1") as server:
        assert join(token(there.invite("a", host="localhost"), server), tmp_path / "a").settings.node_id
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    Listener.address_family = socket.AF_INET6
    try:
        with online(there, "::1") as server:
            assert join(token(there.invite("b"), server), tmp_path / "b").settings.node_id
    finally:
        Listener.address_family = socket.AF_INET


def test_a_folder_that_holds_something(there: Coordinator, tmp_path: Path) -> None:
    """A node, or anything else, is left alone, and nobody is asked."""
    with online(there) as server:
        join(token(there.invite("a"), server), tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "letter.txt").touch()
        for name, words in (("a", "holds a hospital's node already"), ("b", "not empty")):
            with pytest.raises(EnrolmentError, match=words):
                join(token(there.invite(name + "2"), server), tmp_path / name)
        assert server.applications == 1


def test_used_expired_revoked_forged(there: Coordinator, tmp_path: Path) -> None:
    """Each has its code and its sentence, and leaves nothing behind."""
    with online(there) as server:
        used = token(there.invite("used"), server)
        join(used, tmp_path / "used")
        expired = there.invite("expired", lasts=-1)
        late = replace(expired, expires=expired.expires + 3600)  # forged to look good
        revoked = there.invite("revoked")
        there.roster.revoke("revoked", now=time.time())
        forged = replace(there.invite("forged"), secret=bytes(32))
        unknown = replace(forged, hospital="nobody")
        codes = {}
        for name, text in (
            ("used", used),
            ("expired", token(late, server)),
            ("revoked", token(revoked, server)),
            ("forged", token(forged, server)),
            ("unknown", token(unknown, server)),
        ):
            with pytest.raises(EnrolmentRefused) as caught:
                join(text, tmp_path / "new")
            codes[name] = caught.value.code
            assert left(tmp_path) == ["used"]
        assert codes == {
            "used": "used",
            "expired": "expired",
            "revoked": "revoked",
            "forged": "unknown",
            "unknown": "unknown",
        }
        asked = server.applications
        with pytest.raises(EnrolmentError, match="the token expired on"):
            join(token(expired, server), tmp_path / "new")
        assert server.applications == asked
    with pytest.raises(EnrolmentError, match="damaged"):
        join(used[:-3], tmp_path / "new")


def test_two_uses_of_one_token_at_once(there: Coordinator, tmp_path: Path) -> None:
    """Two folders race; one is a node, the other is told, and exactly one node is known to Flower."""
    with online(there) as server, ThreadPoolExecutor(2) as pool:
        text = token(there.invite("a"), server)
        tries = [pool.submit(join, text, tmp_path / name / "node") for name in ("one", "two")]
        failures = [attempt.exception() for attempt in tries]
    refused = [error for error in failures if error is not None]
    assert [getattr(error, "code", error) for error in refused] == ["used"]
    assert sorted(left(tmp_path / "one") + left(tmp_path / "two")) == ["node"]
    assert len(there.registry.nodes) == 1


def test_the_same_join_at_once(there: Coordinator, tmp_path: Path) -> None:
    """One makes the node with the keys that are enrolled; the others, waiting, are told of its folder."""
    with online(there) as server, ThreadPoolExecutor(4) as pool:
        text = token(there.invite("a"), server)
        tries = [pool.submit(join, text, tmp_path / "node") for _ in range(4)]
        errors = [attempt.exception() for attempt in tries]
        assert server.applications == 1
    refused = [error for error in errors if error is not None]
    assert len(refused) == 3
    assert all(type(error) is EnrolmentError and "holds a hospital's node" in str(error) for error in refused)
    assert left(tmp_path) == ["node"]
    home = Home.load(tmp_path / "node")
    (entry,) = there.roster.entries()
    assert home.keys().identity.public_key().public_bytes_raw() == entry.identity_key


def test_a_lost_reply(there: Coordinator, tmp_path: Path) -> None:
    """The coordinator enrolled it, the answer never came: the same command, later, has the same keys."""
    with online(there) as server:
        text = token(there.invite("a"), server)
        server.hang_up = True
        with pytest.raises(EnrolmentError, match="run the same command again"):
            join(text, tmp_path / "node")
        (entry,) = there.roster.entries()
        assert entry.status is Status.ENROLLED
        assert left(tmp_path) == [".node.joining"]
        late = time.time() + 2 * 3600  # the token's hour is over for whoever has not used it
        server.enrolment = there.enrolment(clock=lambda: late)
        home = join(text, tmp_path / "node", clock=lambda: late)
        assert home.keys().identity.public_key().public_bytes_raw() == entry.identity_key
        assert left(tmp_path) == ["node"]
    assert len(there.registry.nodes) == 1


def test_pending_and_accepted(tmp_path: Path) -> None:
    """The hospital is told to wait and by which key it is known; after `accept` the same command succeeds."""
    there = coordinator(tmp_path / "demo", approval=True)
    with online(there) as server:
        text = token(there.invite("a"), server)
        for _ in range(2):
            with pytest.raises(EnrolmentPending) as caught:
                join(text, tmp_path / "node")
            assert there.roster.entries()[0].fingerprint in str(caught.value)
            assert left(tmp_path) == [".node.joining"]
        there.roster.accept("a", now=time.time())
        assert join(text, tmp_path / "node").settings.site == "a"
    assert left(tmp_path) == ["node"]


def test_rejected_then_invited_again(tmp_path: Path) -> None:
    """A rejection drops the keys; another token makes others."""
    there = coordinator(tmp_path / "demo", approval=True)
    with online(there) as server:
        text = token(there.invite("a"), server)
        with pytest.raises(EnrolmentPending):
            join(text, tmp_path / "node")
        before = there.roster.reject("a", now=time.time()).identity_key
        again = token(there.invite("a"), server)
        with pytest.raises(EnrolmentPending):  # kept keys were for another token
            join(again, tmp_path / "node")
        assert there.roster.accept("a", now=time.time()).identity_key != before
        assert join(again, tmp_path / "node")


def test_a_man_in_the_middle_with_his_own_certificate(there: Coordinator, tmp_path: Path) -> None:
    """Another CA has another fingerprint: nothing is sent to him."""
    his = coordinator(tmp_path / "his")
    with listening(there.enrolment(), his.federation.certificate, his.federation.key) as server:
        server.greeting = his.enrolment().greeting()
        with pytest.raises(EnrolmentError, match="another fingerprint"):
            join(token(there.invite("a"), server), tmp_path / "node")
        assert server.applications == 0
    assert "node" not in left(tmp_path)


@pytest.mark.parametrize("order", ["real", "real first", "his first"])
def test_a_man_in_the_middle_who_shows_the_real_authority(
    there: Coordinator, tmp_path: Path, order: str
) -> None:
    """He passes the greeting on, alone or with his CA beside it; TLS trusts the recognised one only."""
    his = coordinator(tmp_path / "his")
    real, own = (one.federation.ca.read_text() for one in (there, his))
    shown = {"real": real, "real first": real + own, "his first": own + real}[order]
    greeting = json.loads(there.enrolment().greeting()) | {"ca": shown}
    with listening(there.enrolment(), his.federation.certificate, his.federation.key) as server:
        server.greeting = json.dumps(greeting).encode()
        with pytest.raises(EnrolmentError, match=r"somebody stands in between|another fingerprint"):
            join(token(there.invite("a"), server), tmp_path / "node")
        assert server.applications == 0
    assert there.roster.entries()[0].status is Status.INVITED


def test_the_wrong_host(there: Coordinator, tmp_path: Path) -> None:
    """The federation's own certificate, at an address that it does not name."""
    with (
        online(there, "127.0.0.2") as server,
        pytest.raises(EnrolmentError, match=r"does not name 127\.0\.0\.2"),
    ):
        join(token(there.invite("a", host="127.0.0.2"), server), tmp_path / "node")


@pytest.mark.parametrize(
    ("off", "words"), [(60.0, "60 seconds ahead of"), (-60.0, "60 seconds behind"), (6.0, "6 seconds ahead")]
)
def test_a_clock_that_is_off(there: Coordinator, tmp_path: Path, off: float, words: str) -> None:
    """By how much and in which direction; the keys are not even made."""
    with online(there) as server, pytest.raises(EnrolmentError, match=words):
        join(token(there.invite("a"), server), tmp_path / "node", clock=lambda: time.time() + off)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("days", "words"), [(-400, "has expired"), (2, "is not valid yet")], ids=["expired", "not yet"]
)
def test_a_certificate_out_of_its_time(there: Coordinator, tmp_path: Path, days: int, words: str) -> None:
    """One that nobody renewed, and one from a coordinator whose clock was ahead when it was made."""
    there.federation.renew(datetime.now(UTC) + timedelta(days=days))
    with online(there) as server, pytest.raises(EnrolmentError, match=f"{words}. Set this machine's clock"):
        join(token(there.invite("a"), server), tmp_path / "node")


def test_a_slow_line_is_no_clock_that_is_off(there: Coordinator, tmp_path: Path) -> None:
    """The coordinator's moment lies between asking and hearing, which took two minutes here."""
    moments = iter([time.time() - 60, time.time() + 60, *[time.time()] * 9])
    with online(there) as server:
        assert join(token(there.invite("a"), server), tmp_path / "node", clock=lambda: next(moments))


def test_another_protocol(there: Coordinator, tmp_path: Path) -> None:
    """Both numbers are told."""
    with (
        online(there, protocol=PROTOCOL + 1) as server,
        pytest.raises(EnrolmentError, match=f"speaks protocol {PROTOCOL + 1}, this node {PROTOCOL}"),
    ):
        join(token(there.invite("a"), server), tmp_path / "node")


def test_another_federation(there: Coordinator, tmp_path: Path) -> None:
    """A token whose name is not what the recognised coordinator calls itself."""
    with online(there) as server, pytest.raises(EnrolmentError, match="for the federation other, and demo"):
        join(token(replace(there.invite("a"), federation="other"), server), tmp_path / "node")


def test_nobody_there(there: Coordinator, tmp_path: Path) -> None:
    """A port where nobody listens, and a name that does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for host in ("127.0.0.1", "nobody.invalid"):
        invitation = replace(there.invite("a"), host=host, port=port)
        with pytest.raises(EnrolmentError, match=f"{host}:{port} cannot be reached"):
            join(invitation.encode(), tmp_path / "node")


@pytest.mark.parametrize("greeting", [b"{}", b"hello", b'{"name": 1}', b"[" * 9000], ids=len)
def test_somebody_else_there(there: Coordinator, tmp_path: Path, greeting: bytes) -> None:
    """Another web server."""
    with online(there) as server:
        server.greeting = greeting
        with pytest.raises(EnrolmentError, match="not as a Zamenis coordinator does"):
            join(token(there.invite("a"), server), tmp_path / "node")


def test_somebody_who_does_not_stop_talking(there: Coordinator, tmp_path: Path) -> None:
    """An answer is read up to its bound, though it began as it should."""
    with online(there) as server:
        server.greeting = there.enrolment().greeting() + b" " * MAX_ANSWER
        with pytest.raises(EnrolmentError, match="not as a Zamenis coordinator does"):
            join(token(there.invite("a"), server), tmp_path / "node")


def test_a_greeting_without_a_certificate(there: Coordinator, tmp_path: Path) -> None:
    """It is told as somebody else's."""
    nobody = Greeting(name="demo", protocol=PROTOCOL, ca="", time=time.time())
    with online(there) as server:
        server.greeting = nobody.to_json()
        with pytest.raises(EnrolmentError, match="another fingerprint"):
            join(token(there.invite("a"), server), tmp_path / "node")


def test_no_tls_there(there: Coordinator, tmp_path: Path) -> None:
    """A server that speaks something else is told as one that cannot be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(100)
                line.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        talking = pool.submit(answer)
        invitation = replace(there.invite("a"), port=server.getsockname()[1])
        with pytest.raises(EnrolmentError, match="cannot be reached"):
            join(invitation.encode(), tmp_path / "node")
        talking.result()


FULL = """
import resource, signal, sys
from pathlib import Path
from client.enrol import join
from common.errors import EnrolmentError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    join(sys.argv[1], Path(sys.argv[2]))
except EnrolmentError as error:
    print(error)
    sys.exit(2)
"""


def join_with_room(text: str, directory: Path, room: int) -> subprocess.CompletedProcess[str]:
    """Join in a process whose files may have `room` bytes at most."""
    arguments = [sys.executable, "-B", "-c", FULL, text, str(directory), str(room)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_full_disk(there: Coordinator, tmp_path: Path) -> None:
    """Before the application nothing is sent; after it the same command mends; nothing half-made stays.

    The node's key has about 300 bytes and the certificate above 600: between them lies the second case.
    """
    with online(there) as server:
        text = token(there.invite("a"), server)
        before = join_with_room(text, tmp_path / "node", 10)
        assert (before.returncode, server.applications) == (2, 0), before.stderr
        assert "Nothing was sent" in before.stdout
        assert left(tmp_path) == []
        between = join_with_room(text, tmp_path / "node", 500)
        assert (between.returncode, server.applications) == (2, 1), between.stderr
        assert "has enrolled this hospital" in between.stdout
        assert "File too large" in between.stdout
        assert left(tmp_path) == [".node.joining"]
        assert join(text, tmp_path / "node").keys()
        assert left(tmp_path) == ["node"]


def test_the_coordinator_cannot_now(there: Coordinator, tmp_path: Path) -> None:
    """Its trouble is told as its trouble; the keys stay for the next try."""
    with online(there) as server:
        text = token(there.invite("a"), server)
        kept = there.federation.roster.read_bytes()
        there.federation.roster.write_bytes(b"no database at all" * 100)
        with pytest.raises(EnrolmentRefused, match="Try again later with the same token"):
            join(text, tmp_path / "node")
        assert left(tmp_path) == [".node.joining"]
        there.federation.roster.write_bytes(kept)
        assert join(text, tmp_path / "node")


def test_a_renewed_certificate_joins_as_before(there: Coordinator, tmp_path: Path) -> None:
    """A token from before the renewal is good after it."""
    invitation = there.invite("a")
    there.federation.renew()
    with online(there) as server:
        assert join(token(invitation, server), tmp_path / "node")


def test_what_speaks_first_is_verified(there: Coordinator, tmp_path: Path) -> None:
    """After joining, a client that trusts the kept ca.pem alone reaches the coordinator by its address."""
    with online(there) as server:
        home = join(token(there.invite("a"), server), tmp_path / "node")
        context = ssl.create_default_context(cafile=home.ca)
        with socket.create_connection(("127.0.0.1", server.server_port)) as line:
            context.wrap_socket(line, server_hostname=home.settings.host).close()
