"""A coordinator's enrolment behind real TLS on this machine, for the tests of both sides."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from client.home import Keys
from common.enrolment import ENROL_PATH, GREETING_PATH, ROSTER_PATH, Application
from common.invitation import Invitation
from common.wire import PROTOCOL
from server.enrolment import Enrolment
from server.federation import Federation, found
from server.roster import Roster

HOUR = 3600


@dataclass
class Registry:
    """What Flower keeps of nodes: the same number for the same key, above 2^63 as it likes them."""

    nodes: dict[bytes, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def register(self, node_key: bytes) -> int:
        """Return the node's number."""
        with self.lock:
            return self.nodes.setdefault(node_key, 2**63 + len(self.nodes))


@dataclass
class Coordinator:
    """A federation with everything that enrolment needs."""

    federation: Federation
    roster: Roster
    registry: Registry

    def enrolment(self, protocol: int = PROTOCOL, clock: Callable[[], float] = time.time) -> Enrolment:
        """Return what answers hospitals."""
        return Enrolment(self.federation, self.roster, protocol, self.registry.register, clock)

    def invite(self, hospital: str, *, host: str = "", lasts: int = HOUR) -> Invitation:
        """Admit `hospital` and return its invitation, perhaps to another address of this machine."""
        now = time.time()
        secret = self.roster.admit(hospital, expires_at=int(now) + lasts, now=now)
        invitation = self.federation.invitation(hospital, secret, int(now) + lasts)
        return Invitation(**{**invitation.__dict__, "host": host or invitation.host})


def coordinator(
    folder: Path, *, host: str = "127.0.0.1", port: int = 1, approval: bool = False, name: str = "demo"
) -> Coordinator:
    """Found a federation in `folder`."""
    federation = found(folder, name, host, port, approval=approval)
    return Coordinator(federation, Roster(federation.roster), Registry())


def application(invitation: Invitation, keys: Keys, **other: str | bytes) -> Application:
    """Return the application that a hospital with `keys` makes, or one with another name or secret."""
    words = {
        "federation": invitation.federation,
        "hospital": invitation.hospital,
        "secret": invitation.secret,
    }
    return Application.sign(**(words | other), node=keys.node, identity=keys.identity)  # type: ignore[arg-type]


class Listener(ThreadingHTTPServer):
    """Answers enrolment over TLS, and takes no node's signature for anything else.

    It may hang up once instead of answering, having done the work.
    """

    daemon_threads = True
    enrolment: Enrolment
    hang_up = False
    greeting: bytes | None = None
    """What to say instead of the greeting."""
    applications = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        if self.path == GREETING_PATH:
            self._answer(200, self.server.greeting or self.server.enrolment.greeting())
        else:
            self._answer(404, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == ROSTER_PATH:
            self._answer(*self.server.enrolment.tell_roster(body))
            return
        if self.path != ENROL_PATH:
            self._answer(401, b"")
            return
        self.server.applications += 1
        status, body = self.server.enrolment.apply(body)
        if self.server.hang_up:
            self.server.hang_up = False
            return
        self._answer(status, body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def listening(
    enrolment: Enrolment, certificate: Path, key: Path, host: str = "127.0.0.1"
) -> Iterator[Listener]:
    """Serve `enrolment` on a free port of `host` with that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with Listener((host, 0), _Handler) as server:
        server.enrolment = enrolment
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
