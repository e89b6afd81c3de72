"""Who may ask what of the coordinator's port, and how much a hospital may leave there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as Header
from flwr.proto.message_pb2 import Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import allowance
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


class Port:
    """The guarded port, asked from an address."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.store = Store()
        guard = Guard(
            self.store, coordinator(folder / "demo").enrolment(), SECRET, lambda node: f"site-{node}"
        )
        self._transport = httpx.ASGITransport(guard, client=(address, 1))

    def ask(self, path: str, content: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
        """Return the status of the answer."""
        return asyncio.run(self._ask(path, content, headers or {}))

    async def _ask(self, path: str, content: bytes, headers: Mapping[str, str]) -> int:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://here") as client:
            return (await client.post(path, content=content, headers=headers)).status_code


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
