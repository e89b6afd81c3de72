"""The two engines a simulation can run on; both run the same ServerApp and ClientApp."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import app as client_app
from client.site import NodeConfig
from common.errors import ConfigError, DataError, ZamenisError
from common.learner import device_of
from common.machine import FORKS, cores
from common.sections import Engine
from simulation.grid import InProcessGrid

T = TypeVar("T")
REGISTRATION = 120.0
"""Seconds that an engine may take until its nodes are there."""


def run(program: Callable[[Grid], T], nodes: Sequence[NodeConfig], engine: Engine) -> T:
    """Return what `program` returns, run as a ServerApp on a grid of `nodes`; raise what of ours it raises.

    Engines treat a ServerApp's errors each in a way of its own, so these pass them by.
    """
    outcome: list[T | ZamenisError] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        _wait_for(grid, len(nodes))
        try:
            outcome.append(program(grid))
        except ZamenisError as error:
            outcome.append(error)

    device_of(engine.device)
    start = _on_ray if engine.name == "ray" else _in_process
    start(server_app, nodes, workers_of(engine))
    (ended,) = outcome
    if isinstance(ended, ZamenisError):
        raise ended
    return ended


def _wait_for(grid: Grid, nodes: int) -> None:
    """Wait until every node is there: Flower's engine starts a ServerApp before it registers its nodes."""
    deadline = time.monotonic() + REGISTRATION
    while len(list(grid.get_node_ids())) < nodes:
        if time.monotonic() > deadline:
            raise DataError(f"the engine did not start within {REGISTRATION:.0f} s; try --engine inprocess.")
        time.sleep(0.01)


def workers_of(engine: Engine) -> int:
    """Return how many processes compute: as configured, or one per core, or one where there is CUDA.

    Where no process divides, one computes.
    """
    if not FORKS:
        return 1
    if engine.workers:
        return engine.workers
    return 1 if device_of(engine.device).type == "cuda" else cores()


def _in_process(server_app: ServerApp, nodes: Sequence[NodeConfig], workers: int) -> None:
    with InProcessGrid(client_app, nodes, workers=workers) as grid:
        context = Context(
            run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={}
        )
        server_app(grid, context)


def _on_ray(server_app: ServerApp, nodes: Sequence[NodeConfig], workers: int) -> None:
    """Run on Flower's simulation engine, one CPU per actor; Ray's own output is kept quiet."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            'engine ray needs the extra: pip install "zamenis[ray]", or use --engine inprocess.'
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app=server_app,
        client_app=_Placed(nodes),
        num_supernodes=len(nodes),
        backend_config={
            "init_args": {"num_cpus": workers, "logging_level": logging.ERROR, "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


class _Placed(ClientApp):
    """The hospital's ClientApp, told which hospital it is by the partition that Flower's engine gives it."""

    def __init__(self, nodes: Sequence[NodeConfig]) -> None:
        super().__init__()
        self._configs = [dict(node) for node in nodes]

    def __call__(self, message: Message, context: Context) -> Message:
        context.node_config.update(self._configs[int(str(context.node_config["partition-id"]))])
        return client_app(message, context)
