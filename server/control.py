"""What the coordinator asks of its own SuperLink: nodes registered and gone, runs begun and ended."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from flwr.cli.build import build_fab_from_files
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from common.errors import LinkError
from common.plain_http import keep_plain
from server.federation import Federation

Request = TypeVar("Request")
Answer = TypeVar("Answer")
SERVER_ERROR = 500
SECRET_HEADER = "x-zamenis-control"  # noqa: S105 - the header's name
BUNDLE = """\
[project]
name = "zamenis"
version = "1.0.0"
description = "Names a run. Coordinator and hospitals run what they have installed, never what is in here."
license = "Apache-2.0"
[tool.flwr.app]
publisher = "zamenis"
[tool.flwr.app.components]
serverapp = "none:none"
clientapp = "none:none"
"""
"""Flower wants an app bundle for every run; this one has no code in it."""


class UnwantedError(LinkError):
    """The SuperLink is there and declines."""


class Control:
    """The coordinator's side of its SuperLink's control interface."""

    def __init__(self, federation: Federation) -> None:
        self._client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{federation.port}",
            insecure=False,
            root_certificates=federation.ca.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-cli"),
                Secret(federation),
            ],
        )
        keep_plain(self._client._client)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def register(self, node_key: bytes) -> int:
        """Return the node id of the node whose public key (DER) may connect from now on."""
        pem = pem_of(node_key)
        known = {node.public_key: node.node_id for node in self.nodes() if node.status != "unregistered"}
        return known.get(pem) or asked(self._client.RegisterNode, RegisterNodeRequest(public_key=pem)).node_id

    def unregister(self, node_id: int) -> None:
        """Let a node's key connect no more."""
        asked(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[NodeInfo]:
        """Return every registered node with its status."""
        return list(asked(self._client.ListNodes, ListNodesRequest()).nodes_info)

    def online(self) -> set[int]:
        """Return the nodes that are connected now."""
        return {node.node_id for node in self.nodes() if node.status == "online"}

    def start_run(self) -> int:
        """Return the id of a new run."""
        found = asked(self._client.StartRun, StartRunRequest(fab=_bundle())).run_id
        if not found:
            raise LinkError("the SuperLink does not start a run; its log says why.")
        return found

    def stop_run(self, run_id: int) -> None:
        """End a run; nodes drop what they still do for it."""
        asked(self._client.StopRun, StopRunRequest(run_id=run_id))


def pem_of(node_key: bytes) -> bytes:
    """Return a node's public key (DER) as Flower keeps it."""
    return load_der_public_key(node_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=1)
def _bundle() -> Fab:
    content, _ = build_fab_from_files({"pyproject.toml": BUNDLE.encode()})
    return Fab(content=content)


class Secret:
    """Puts the coordinator's secret on every request."""

    def __init__(self, federation: Federation) -> None:
        self._secret = federation.control_secret.read_bytes().hex()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request with it."""
        context.request.headers[SECRET_HEADER] = self._secret
        return call_next(context)


def asked(call: Callable[[Request], Answer], request: Request) -> Answer:
    """Return the SuperLink's answer; LinkError where it does not answer or declines."""
    try:
        return call(request)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        kind = UnwantedError if status < SERVER_ERROR else LinkError
        raise kind(f"the SuperLink declined (status {status}); its log says why.") from error
    except httpx.HTTPError as error:
        raise LinkError(
            f"the SuperLink does not answer ({type(error).__name__}); is it started? "
            "zamenis-coordinator start starts it."
        ) from error
