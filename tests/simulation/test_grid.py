"""The in-process grid serves the same as any other: same bits for any number of workers, and it survives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as client_app
from client.site import NodeConfig
from common import weights, wire
from common.config import Config, load
from common.errors import DataError
from server import evaluation
from server.app import common_input_shape, initial_weights, meta_train
from server.checkpoint import Checkpoint
from server.exchange import exchange
from simulation.grid import InProcessGrid

echo = ClientApp()


@echo.query("where")
def where(message: Message, context: Context) -> Message:
    """Reply with nothing but being there."""
    context.state["visits"] = message.content.config_records["ask"]
    return Message(RecordDict(), reply_to=message)


@echo.query("die")
def die(message: Message, context: Context) -> Message:
    """Die as a process does that runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@echo.query("stall")
def stall(message: Message, context: Context) -> Message:
    """Never answer."""
    time.sleep(60)
    raise AssertionError


@echo.query("fail")
def fail(message: Message, context: Context) -> Message:
    """Fail with words that must not travel."""
    raise RuntimeError("PatientName DOE^JANE in /data/secret.dcm")


def ask(grid: InProcessGrid, node: int, action: str) -> Message:
    """Return the reply to one message."""
    content = RecordDict({"ask": ConfigRecord({"n": node})})
    ((_, reply),) = exchange(grid, [Message(content, node, f"query.{action}")], timeout=20)
    return reply


def nodes_of(parent: Path) -> list[NodeConfig]:
    """Return a node for each hospital under `parent`."""
    return [
        {"site": one.name, "hospital": str(one), "device": "cpu", "threads": 1}
        for one in sorted(parent.iterdir())
    ]


def small(**over: object) -> Config:
    """Return a configuration for tables that takes a second."""
    settings = ["model.name=mlp", "model.width=16", "training.rounds=4", "training.cohort=3"]
    return load(None, [*settings, *(f"{key.replace('__', '.')}={value}" for key, value in over.items())])


def phi_after(parent: Path, out: Path, config: Config, workers: int) -> torch.Tensor:
    """Return phi after a meta-training with so many workers."""
    with InProcessGrid(client_app, nodes_of(parent), workers=workers) as grid:
        sites = evaluation.describe(grid, config).all_of_them()
        like = initial_weights(config, common_input_shape(sites.values()))
        return meta_train(grid, config, "reptile", sites, weights.pack(like), out).phi


def test_results_do_not_depend_on_the_number_of_workers(
    table_hospitals: Callable[[int], Path], tmp_path: Path
) -> None:
    """One process, two workers, five workers for four sites: the same phi bit for bit, and it moved."""
    parent, config = table_hospitals(4), small()
    found = [phi_after(parent, tmp_path / str(workers), config, workers) for workers in (1, 2, 5)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], phi_after(parent, tmp_path / "other", small(seed=1), 1))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    table_hospitals: Callable[[int], Path], tmp_path: Path, optimizer: str
) -> None:
    """Interrupt after the second round's checkpoint; what resumes ends in the same bits."""
    parent = table_hospitals(4)
    config = small(algorithms__reptile__outer__optimizer=optimizer)
    straight = phi_after(parent, tmp_path / "straight", config, 2)

    def interrupt(now: Checkpoint) -> None:
        if now.state.server_round == 2:
            raise KeyboardInterrupt

    with InProcessGrid(client_app, nodes_of(parent), workers=2) as grid:
        sites = evaluation.describe(grid, config).all_of_them()
        initial = weights.pack(initial_weights(config, common_input_shape(sites.values())))
        with pytest.raises(KeyboardInterrupt):
            meta_train(grid, config, "reptile", sites, initial, tmp_path / "broken", interrupt)
    assert torch.equal(straight, phi_after(parent, tmp_path / "broken", config, 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_travels_as_its_kind_alone(workers: int) -> None:
    """No text of an exception reaches the coordinator."""
    with InProcessGrid(echo, [{"site": "a"}, {"site": "b"}], workers=workers) as grid:
        reply = ask(grid, 2, "fail")
        assert reply.has_error()
        assert "RuntimeError" in str(reply.error.reason)
        assert "DOE" not in str(reply.error.reason)
        assert "secret" not in str(reply.error.reason)
        assert not ask(grid, 2, "where").has_error()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_site_keeps_its_context(workers: int) -> None:
    """What a ClientApp leaves in its context is there at the next message, whoever serves it."""
    with InProcessGrid(echo, [{"site": "a"}, {"site": "b"}], workers=workers) as grid:
        ask(grid, 3, "where")
        ask(grid, 2, "where")
        kept = [node.context.state.config_records["visits"]["n"] for node in grid._nodes.values()]
    assert kept == [2, 3]


def test_a_worker_that_dies_costs_its_message_only() -> None:
    """The message is answered with an error, and a new worker serves the next."""
    with InProcessGrid(echo, [{"site": "a"}, {"site": "b"}], workers=2) as grid:
        lost = ask(grid, 2, "die")
        assert lost.has_error()
        assert "died" in str(lost.error.reason)
        assert not ask(grid, 2, "where").has_error()


def test_a_worker_that_stalls_is_replaced() -> None:
    """After the grid's timeout its message is answered with an error."""
    with InProcessGrid(echo, [{"site": "a"}, {"site": "b"}], workers=2, timeout=0.5) as grid:
        assert "0 s" in str(ask(grid, 2, "stall").error.reason)
        assert not ask(grid, 3, "where").has_error()


def test_workers_end_with_the_grid() -> None:
    """No process is left behind."""
    with InProcessGrid(echo, [{"site": "a"}, {"site": "b"}], workers=3) as grid:
        processes = [worker.process for worker in grid._workers]
        assert all(process.is_alive() for process in processes)
    assert not any(process.is_alive() for process in processes)


def test_hospitals_that_disagree_on_their_columns_are_told_apart(
    table_hospitals: Callable[[int], Path],
) -> None:
    """The message names the column and the hospitals."""
    parent = table_hospitals(2)
    schema = parent / "site-2" / "schema.toml"
    schema.write_text(schema.read_text().replace(', "d"', ""))
    with InProcessGrid(client_app, nodes_of(parent), workers=1) as grid:
        sites = evaluation.describe(grid, small()).all_of_them()
        with pytest.raises(DataError, match="column 4 is d at site-1, and missing at site-2"):
            common_input_shape(sites.values())


def test_a_coordinator_of_another_protocol_is_refused(table_hospitals: Callable[[int], Path]) -> None:
    """The site answers with a clear refusal."""
    parent, config = table_hospitals(1), small()
    with InProcessGrid(client_app, nodes_of(parent), workers=1) as grid:
        instruction = wire.Instruction(config=config.to_json(), protocol=99)
        ((_, reply),) = exchange(grid, [wire.instruct(2, wire.DESCRIBE, instruction)], timeout=20)
    assert reply.error.code == wire.UNKNOWN_PROTOCOL
    assert "protocol 99" in str(reply.error.reason)
