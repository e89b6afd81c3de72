"""The one port that the world sees: Flower's SuperLink behind a guard, and the enrolment of hospitals.

The open SuperLink serves three interfaces on one port, and two of them trust whoever reaches it. The guard
lets the world use the Fleet interface (whose requests Flower authenticates by the nodes' keys) and
enrolment, and nothing else; runs are started and nodes registered from this machine alone, with a secret.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable

import uvicorn
from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NodeStatus
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import wire
from common.enrolment import ENROL_PATH, GREETING_PATH, MAX_APPLICATION, MAX_QUESTION, ROSTER_PATH
from server.control import SECRET_HEADER, Control, pem_of
from server.enrolment import Enrolment
from server.entry import Status
from server.federation import Federation
from server.roster import Roster

logger = logging.getLogger("zamenis.gateway")
FLEET, CONTROL, RUNTIME = "/v1/fleet/", "/v1/control/", "/v1/runtime/"
CLOSED = {FLEET + "register-node", FLEET + "unregister-node"}
"""What a node might ask of the Fleet interface and the coordinator alone decides."""
REPLIES = FLEET + "push-messages"
LONGEST_REPLY = 2**20
"""Bytes of a reply's header and tree of objects; the objects themselves come one by one."""
LONGEST_BODY = 32 * 2**20
"""Bytes of one request; Flower sends arrays in pieces of 5 MiB."""


class Guard:
    """ASGI: who may ask what."""

    def __init__(self, superlink: ASGIApp, enrolment: Enrolment, secret: bytes) -> None:
        self._superlink = superlink
        self._enrolment = enrolment
        self._secret = secret.hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer enrolment, pass on what is allowed, and know nothing of the rest."""
        if scope["type"] == "lifespan":
            await self._superlink(scope, receive, send)
            return
        path = scope.get("path", "")
        if scope["type"] == "http" and path in (GREETING_PATH, ENROL_PATH, ROSTER_PATH):
            await self._enrol(scope, receive, send)
        elif scope["type"] == "http" and path == REPLIES:
            await self._pass_reply(scope, receive, send)
        elif scope["type"] == "http" and self._may_pass(Request(scope), path):
            await self._superlink(scope, _bounded(receive, LONGEST_BODY), send)
        else:
            await PlainTextResponse("not found", 404)(scope, receive, send)

    def _may_pass(self, request: Request, path: str) -> bool:
        if path.startswith(FLEET):
            return path not in CLOSED
        if not _is_here(request):
            return False
        if path.startswith(CONTROL):
            return hmac.compare_digest(request.headers.get(SECRET_HEADER, "").encode(), self._secret.encode())
        return path.startswith(RUNTIME)

    async def _pass_reply(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a node's replies, which must be its own and answer something: Flower does not look."""
        body = b""
        try:
            async for piece in Request(scope, receive).stream():
                body += piece
                if len(body) > LONGEST_REPLY:
                    raise ValueError("too long")
            offered = PushMessagesRequest.FromString(body)
        except Exception:
            await PlainTextResponse("not a reply", 400)(scope, receive, send)
            return
        for message in offered.messages_list:
            told = message.metadata
            if told.src_node_id != offered.node.node_id or not told.reply_to_message_id:
                await PlainTextResponse("not this node's reply", 403)(scope, receive, send)
                return
        await self._superlink(scope, _again(body), send)

    async def _enrol(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if (request.url.path, request.method) == (GREETING_PATH, "GET"):
            answer = Response(self._enrolment.greeting(), media_type="application/json")
        elif (request.url.path, request.method) == (ENROL_PATH, "POST"):
            answer = await self._told(request, self._enrolment.apply, MAX_APPLICATION)
        elif (request.url.path, request.method) == (ROSTER_PATH, "POST"):
            answer = await self._told(request, self._enrolment.tell_roster, MAX_QUESTION)
        else:
            answer = PlainTextResponse("method not allowed", 405)
        await answer(scope, receive, send)

    async def _told(
        self, request: Request, tell: Callable[[bytes], tuple[int, bytes]], limit: int
    ) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                return PlainTextResponse("too long", 413)
        status, answer = await asyncio.to_thread(tell, body)
        return Response(answer, status, media_type="application/json")


def _is_here(request: Request) -> bool:
    """Return whether a request comes from this machine itself."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _again(body: bytes) -> Receive:
    """Return a `receive` that gives a body that was read already."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return {"type": "http.disconnect"}

    return again


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that hangs up on a body longer than `limit` bytes."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > limit else message

    return bounded


def application(federation: Federation) -> ASGIApp:
    """Return everything that the coordinator's port serves."""
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=federation.port,
        insecure=False,
        certificates=None,
        superexec_auth_secret=federation.superexec_secret.read_bytes(),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(federation.ca),
        ssl_certfile=str(federation.certificate),
        ssl_keyfile=str(federation.key),
        database=str(federation.superlink),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    roster = Roster(federation.roster)

    class Lifespan(SuperLinkLifespan):
        """Flower's, which before it serves anybody lets go whom the roster has let go meanwhile."""

        def startup(self) -> None:
            super().startup()
            let_go(self.state_factory.state(), roster)

    superlink = create_app(config, Lifespan)
    enrolment = Enrolment(federation, roster, wire.PROTOCOL, Control(federation).register)
    return Guard(superlink, enrolment, federation.control_secret.read_bytes())


def let_go(state: LinkState, roster: Roster) -> None:
    """Unregister every node whose hospital is not enrolled: revoked while the service was down, say."""
    kept = {pem_of(entry.node_key) for entry in roster.entries() if entry.status is Status.ENROLLED}
    for node in state.get_node_info(statuses=[NodeStatus.REGISTERED, NodeStatus.ONLINE, NodeStatus.OFFLINE]):
        if node.public_key not in kept:
            state.delete_node(owner_aid=node.owner_aid, node_id=node.node_id)
            logger.info("node %d is of no enrolled hospital, and is let go", node.node_id)


def serve(federation: Federation, *, started: Callable[[], None] = lambda: None) -> None:
    """Serve until this process is told to stop."""
    server = _Server(
        uvicorn.Config(
            application(federation),
            host="",
            port=federation.port,
            ssl_certfile=str(federation.certificate),
            ssl_keyfile=str(federation.key),
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
        ),
        started,
    )
    server.run()


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._ready()
