"""Who may ask what of the coordinator's port: Flower's SuperLink stands behind this guard.

The open SuperLink serves three interfaces on one port, and two of them trust whoever reaches it. The guard
lets the world use the Fleet interface (whose requests Flower authenticates by the nodes' keys) and
enrolment, and nothing else. Runs are started and led, and nodes registered, from this machine with a secret:
an address alone opens nothing, since a proxy here would make the whole world local.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.enrolment import ENROL_PATH, GREETING_PATH, MAX_APPLICATION, MAX_QUESTION, ROSTER_PATH
from common.object_tree import identifiers
from common.plain_http import LONGEST_BODY
from server.allowance import Allowance
from server.control import SECRET_HEADER
from server.enrolment import Enrolment
from server.sender import sender

logger = logging.getLogger("zamenis.gateway")
FLEET, CONTROL, RUNTIME = "/v1/fleet/", "/v1/control/", "/v1/runtime/"
CLOSED = {FLEET + "register-node", FLEET + "unregister-node"}
"""What a node might ask of the Fleet interface and the coordinator alone decides."""
REPLIES = FLEET + "push-messages"
PIECES, OWN_PIECES = FLEET + "push-object", RUNTIME + "push-object"
"""Where a hospital's pieces of replies come in, and the coordinator's of messages."""
LONGEST_REPLY = 2**17
"""Bytes of a reply's header and tree of objects; the objects themselves come one by one. Those of 255
hospitals, the most that sum, are within what the coordinator reads at once (`LONGEST_BODY`)."""


LONGEST_PIECE = 2**23
"""Bytes of a piece of a hospital's reply; Flower's are of 5 MiB."""
MOST_OF_STRANGERS = 2**27
"""Bytes that requests to enrol and for the roster may come to at once: anybody can send, and never finish."""


class Refusal(Exception):  # noqa: N818 - an answer, not a failure of ours
    """What a request is answered with in the SuperLink's place: a status and words."""

    def __init__(self, status: int, words: str) -> None:
        self.answer = PlainTextResponse(words, status)
        super().__init__(words)


class Guard:
    """ASGI: who may ask what. `enrolled` tells whether a node's key (DER) is an enrolled hospital's."""

    def __init__(
        self,
        superlink: ASGIApp,
        enrolment: Enrolment,
        secret: bytes,
        name_of: Callable[[int], str],
        enrolled: Callable[[bytes], bool],
    ) -> None:
        self._superlink = superlink
        self._enrolment = enrolment
        self._secret = secret.hex()
        self._name_of = name_of
        self._enrolled = enrolled
        self._allowance = Allowance()
        self._strangers = 0
        """Bytes of strangers' bodies that are being read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer enrolment, pass on what is allowed, and know nothing of the rest."""
        if scope["type"] == "lifespan":
            await self._superlink(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(Request(scope, receive), send)
            except Refusal as refusal:
                await refusal.answer(scope, receive, send)
        else:
            await PlainTextResponse("not found", 404)(scope, receive, send)

    async def _answer(self, request: Request, send: Send) -> None:
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refusal(415, "compressed bodies are not read")
        path = request.scope["path"]  # what the router goes by; a URL is put together with the Host header
        if path in (GREETING_PATH, ENROL_PATH, ROSTER_PATH):
            await (await self._enrol(request))(request.scope, request.receive, send)
        elif not self._may_pass(request, path):
            raise Refusal(404, "not found")
        elif path.startswith(FLEET) and not await asyncio.to_thread(self._is_a_hospitals, request):
            raise Refusal(401, "not an enrolled hospital's node")
        elif path == REPLIES:
            await self._pass_reply(request, send)
        elif path in (PIECES, OWN_PIECES):
            await self._pass_piece(request, send, own=path == OWN_PIECES)
        else:
            longest = LONGEST_REPLY if path.startswith(FLEET) else LONGEST_BODY
            await self._superlink(request.scope, _bounded(request.receive, longest), send)

    def _may_pass(self, request: Request, path: str) -> bool:
        if path.startswith(FLEET):
            return path not in CLOSED
        if not path.startswith((CONTROL, RUNTIME)) or not _is_here(request):
            return False
        return hmac.compare_digest(request.headers.get(SECRET_HEADER, "").encode(), self._secret.encode())

    def _is_a_hospitals(self, request: Request) -> bool:
        key = sender(request.headers)
        return key is not None and self._enrolled(key)

    async def _pass_reply(self, request: Request, send: Send) -> None:
        """Pass on a node's replies, which must be its own and answer something: Flower does not look."""
        body = await _body_of(request, LONGEST_REPLY)
        try:
            offered = PushMessagesRequest.FromString(body)
            for tree in offered.message_object_trees:
                identifiers(tree)
        except Exception as error:  # whatever a parser does with bytes that somebody made up
            raise Refusal(400, "not a reply") from error
        for message in offered.messages_list:
            told = message.metadata
            if told.src_node_id != offered.node.node_id or not told.reply_to_message_id:
                raise Refusal(403, "not this node's reply")
        await self._superlink(request.scope, _again(body), send)

    async def _pass_piece(self, request: Request, send: Send, *, own: bool) -> None:
        """Pass on a piece and count it where it was taken; a hospital's not beyond its allowance."""
        body = await _body_of(request, LONGEST_BODY if own else LONGEST_PIECE)
        try:
            piece = PushObjectRequest.FromString(body)
        except Exception as error:  # as above
            raise Refusal(400, "not a piece of a message") from error
        run, node = piece.run_id, 0 if own else piece.node.node_id
        if not own and not self._allowance.has_room(run, node, len(body)):
            logger.warning("%s sends more than any reply needs; it is refused", self._name_of(node))
            raise Refusal(413, "more than any reply needs")

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._allowance.count(run, node, len(body))
            await send(message)

        await self._superlink(request.scope, _again(body), counted)

    async def _enrol(self, request: Request) -> Response:
        asked = (request.scope["path"], request.method)
        if asked == (GREETING_PATH, "GET"):
            return Response(self._enrolment.greeting(), media_type="application/json")
        if asked == (ENROL_PATH, "POST"):
            return await self._told(request, self._enrolment.apply, MAX_APPLICATION)
        if asked == (ROSTER_PATH, "POST"):
            return await self._told(request, self._enrolment.tell_roster, MAX_QUESTION)
        return PlainTextResponse("method not allowed", 405)

    async def _told(
        self, request: Request, tell: Callable[[bytes], tuple[int, bytes]], limit: int
    ) -> Response:
        if self._strangers + limit > MOST_OF_STRANGERS:
            raise Refusal(503, "too many ask at once; ask again")
        self._strangers += limit
        try:
            body = await _body_of(request, limit)
        finally:
            self._strangers -= limit
        status, answer = await asyncio.to_thread(tell, body)
        return Response(answer, status, media_type="application/json")


async def _body_of(request: Request, longest: int) -> bytes:
    """Return a request's body; one of more than `longest` bytes is refused as soon as it is."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > longest:
                raise Refusal(413, "too long")
    except ClientDisconnect:
        raise Refusal(400, "not whole") from None
    return bytes(body)


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
