"""The one port that the world sees: Flower's SuperLink behind a guard (`server.guard`), as a service."""

from __future__ import annotations

import logging
from collections.abc import Callable

import uvicorn
from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NodeStatus
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from starlette.types import ASGIApp

from common import wire
from server.control import Control, pem_of
from server.enrolment import Enrolment
from server.entry import Status
from server.federation import Federation
from server.guard import Guard
from server.roster import Roster

logger = logging.getLogger("zamenis.gateway")


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
    secret = federation.control_secret.read_bytes()

    def name_of(node_id: int) -> str:
        return next((entry.hospital for entry in roster.entries() if entry.node_id == node_id), str(node_id))

    return Guard(superlink, enrolment, secret, name_of, roster.is_enrolled)


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
