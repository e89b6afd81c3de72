"""The coordinator's port as it starts: whom it still knows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation import NoOpFederationManager
from starlette.types import ASGIApp, Message

from client.home import Keys
from server.control import pem_of
from server.federation import Federation
from server.gateway import application
from tests.enrolling import application as application_of
from tests.enrolling import coordinator


def nodes(federation: Federation) -> dict[bytes, str]:
    """Return the status of each node that Flower's database knows, by its public key."""
    _, factory = get_objectstore_linkstate_factories(str(federation.superlink), NoOpFederationManager())
    return {node.public_key: node.status for node in factory.state().get_node_info()}


async def start_and_stop(served: ASGIApp) -> list[str]:
    """Start and stop what a server would serve, and return what it said."""
    orders, said = iter(("lifespan.startup", "lifespan.shutdown")), list[str]()

    async def receive() -> Message:
        return {"type": next(orders)}

    async def send(message: Message) -> None:
        said.append(message["type"])

    await served({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return said


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # Flower's use of Alembic
def test_who_was_revoked_while_the_service_was_down_is_let_go_as_it_starts(tmp_path: Path) -> None:
    """Before anybody is served; who is enrolled stays, a node that only Flower knows does not."""
    there = coordinator(tmp_path / "demo")
    keys = {}
    for name in ("kept", "gone"):
        asked = application_of(there.invite(name), Keys.make())
        keys[name] = pem_of(there.roster.enrol(asked, now=time.time(), approval=False).node_key)
    keys["stray"] = pem_of(application_of(there.invite("stray"), Keys.make()).node_key)
    _, factory = get_objectstore_linkstate_factories(str(there.federation.superlink), NoOpFederationManager())
    for key in keys.values():
        factory.state().create_node("owner", "owner", key, 10.0)
    there.roster.revoke("gone", now=time.time())
    said = asyncio.run(start_and_stop(application(there.federation)))
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert nodes(there.federation) == {
        keys["kept"]: "registered",
        keys["gone"]: "unregistered",
        keys["stray"]: "unregistered",
    }
