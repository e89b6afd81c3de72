"""Who may ask what of the coordinator's port, and how much a hospital may leave there."""

from __future__ import annotations

import asyncio
import datetime
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as Header
from flwr.proto.message_pb2 import Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.home import Keys
from common.enrolment import ENROL_PATH, MAX_APPLICATION
from server import allowance, guard
from server.control import SECRET_HEADER
from server.guard import LONGEST_REPLY, OWN_PIECES, PIECES, REPLIES, Guard
from tests.enrolling import coordinator

SECRET = bytes(range(32))
WITH_SECRET = {SECRET_HEADER: SECRET.hex()}
STRANGER = 9


class Store:
    """Stands for the SuperLink: takes every request whole, but a stranger's, and counts the bytes."""

    def __init__(self) -> None:
        self.taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200, or 401 as Flower does where a signature is not the node's."""
        body = await Request(scope, receive).body()
        known = PushObjectRequest.FromString(body).node.node_id != STRANGER
        self.taken += len(body) if known else 0
        await Response(status_code=200 if known else 401)(scope, receive, send)


def der_of(key: EllipticCurvePrivateKey) -> bytes:
    """Return a node's public key as the roster keeps it."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed(key: EllipticCurvePrivateKey, *, ago: float = 0.0) -> dict[str, str]:
    """Return the headers that Flower's nodes send, made so many seconds ago."""
    made = (now() - datetime.timedelta(seconds=ago)).isoformat()
    texts = (public_key_to_bytes(key.public_key()), sign_message(key, made.encode()))
    public, signature = (b64encode(text).decode() for text in texts)
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: public,
        TIMESTAMP_HEADER: made,
        FLEET_HTTP_SIGNATURE_HEADER: signature,
    }


class Port:
    """The guarded port, asked from an address."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.store = Store()
        self.key = Keys.make().node
        self.guard = Guard(
            self.store,
            coordinator(folder / "demo").enrolment(),
            SECRET,
            lambda node: f"site-{node}",
            lambda key: key == der_of(self.key),
        )
        self.transport = httpx.ASGITransport(self.guard, client=(address, 1))

    def ask(self, path: str, content: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
        """Return the status of the answer."""
        return asyncio.run(self._ask(path, content, headers or {}))

    async def _ask(self, path: str, content: bytes, headers: Mapping[str, str]) -> int:
        async with httpx.AsyncClient(transport=self.transport, base_url="http://here") as client:
            told = {**signed(self.key), **headers} if path.startswith("/v1/fleet/") else headers
            return (await client.post(path, content=content, headers=told)).status_code


def piece(node: int, length: int) -> bytes:
    """Return a request that hands over a piece of so many bytes."""
    request = PushObjectRequest(node=Node(node_id=node), run_id=1, object_content=bytes(length))
    content: bytes = request.SerializeToString()
    return content


@pytest.mark.parametrize(
    "path", ["/v1/runtime/acquire-task", "/v1/runtime/push-object", "/v1/control/stop-run"]
)
def test_an_address_of_this_machine_opens_nothing_without_the_secret(tmp_path: Path, path: str) -> None:
    """A proxy on this machine would make the world local; and the secret opens nothing from elsewhere."""
    near, far = Port(tmp_path / "near"), Port(tmp_path / "far", "192.0.2.1")
    assert near.ask(path) == 404
    assert near.ask(path, headers={SECRET_HEADER: "0" * 64}) == 404
    assert far.ask(path, headers=WITH_SECRET) == 404
    assert near.ask(path, headers=WITH_SECRET) == 200


def sent(app: ASGIApp, path: str, headers: Mapping[str, str], pieces: Iterable[bytes]) -> tuple[int, int]:
    """Return the status of an answer, and how many pieces of the body were read for it."""
    left, read, statuses = list(pieces), 0, []

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "client": ("192.0.2.1", 1)}

    async def ask() -> None:
        await app(scope, receive, send)

    asyncio.run(ask())
    return statuses[0], read


@pytest.mark.parametrize("path", [PIECES, REPLIES, "/v1/fleet/pull-messages"])
def test_of_strangers_nothing_is_read(tmp_path: Path, path: str) -> None:
    """Not enrolled, signed by nobody, signed with another key, or long ago: no byte of a body is kept."""
    port, other = Port(tmp_path), Keys.make().node
    mine = signed(port.key)
    forged = {**mine, FLEET_HTTP_SIGNATURE_HEADER: signed(other)[FLEET_HTTP_SIGNATURE_HEADER]}
    for headers in ({}, signed(other), forged, signed(port.key, ago=3600), {**mine, TIMESTAMP_HEADER: "x"}):
        assert sent(port.guard, path, headers, [bytes(2**20)] * 8) == (401, 0)
    assert sent(port.guard, path, mine, [piece(7, 10)])[1] == 1


def test_a_hospitals_piece_is_no_longer_than_flowers(tmp_path: Path) -> None:
    """It is given up one piece after 8 MiB."""
    port = Port(tmp_path)
    assert sent(port.guard, PIECES, signed(port.key), [bytes(2**20)] * 32) == (413, 9)


def test_strangers_questions_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask to be enrolled, and never finish the sentence."""
    monkeypatch.setattr(guard, "MOST_OF_STRANGERS", MAX_APPLICATION)
    port = Port(tmp_path)

    async def two_at_once() -> list[int]:
        begun, finished = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            begun.set()
            yield b"{"
            await finished.wait()
            yield b"}"

        async with httpx.AsyncClient(transport=port.transport, base_url="http://here") as client:
            first = asyncio.create_task(client.post(ENROL_PATH, content=slow()))
            await begun.wait()
            second = await client.post(ENROL_PATH, content=b"{}")
            finished.set()
            third = [await first, await client.post(ENROL_PATH, content=b"{}")]
            return [answer.status_code for answer in (second, *third)]

    refused, *answered = asyncio.run(two_at_once())
    assert refused == 503
    assert 503 not in answered


def test_a_compressed_request_is_refused(tmp_path: Path) -> None:
    """Whatever it is for."""
    port = Port(tmp_path)
    for path in (PIECES, REPLIES, "/v1/fleet/pull-messages", "/v1/zamenis/enrol"):
        assert port.ask(path, piece(7, 1), {"Content-Encoding": "gzip"}) == 415
    assert port.store.taken == 0


def test_a_reply_of_too_many_objects_is_refused(tmp_path: Path) -> None:
    """Each would be a request of the coordinator's later."""
    header = Header(metadata=Metadata(src_node_id=7, reply_to_message_id="1"))

    def reply(objects: int) -> bytes:
        tree = ObjectTree(object_id="x")
        for _ in range(objects - 1):
            tree.children.add(object_id="y")
        request = PushMessagesRequest(
            node=Node(node_id=7), messages_list=[header], message_object_trees=[tree]
        )
        content: bytes = request.SerializeToString()
        assert len(content) < LONGEST_REPLY
        return content

    port = Port(tmp_path)
    assert port.ask(REPLIES, reply(1024)) == 200
    assert port.ask(REPLIES, reply(1025)) == 400


def test_a_hospital_cannot_fill_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may send four times what the run sent and some more; others and the coordinator go on."""
    monkeypatch.setattr(allowance, "SLACK", 10_000)
    port = Port(tmp_path)
    assert [port.ask(PIECES, piece(7, 4000)) for _ in range(3)] == [200, 200, 413]
    assert port.ask(PIECES, piece(8, 4000)) == 200
    assert port.ask(OWN_PIECES, piece(7, 2000), WITH_SECRET) == 200
    assert [port.ask(PIECES, piece(7, 4000)) for _ in range(3)] == [200, 200, 413]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "site-7 sends more than any reply needs; it is refused"
    ] * 2


def test_nobody_uses_up_another_hospitals_allowance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower does not take, for its signature is not the node's, does not count."""
    monkeypatch.setattr(allowance, "SLACK", 10_000)
    port = Port(tmp_path)
    assert [port.ask(PIECES, piece(STRANGER, 4000)) for _ in range(5)] == [401] * 5
