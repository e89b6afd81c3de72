"""The worker behind its walls computes the same bits as without them, from files that it reads first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client import site
from client.app import app
from client.home import Home, Keys, NodeSettings
from client.node import config_of
from client.policy import guarded
from client.reach import reach_of
from client.registration import register
from client.worker import Worker, answer
from common import wire
from common.config import Config, load
from common.initialise import parameters_of
from common.learner import Learner
from tests.client.dicom_files import write_hospital
from tests.conftest import write_table_hospital

BOTH = ("image", "table")


def registered(folder: Path, data: str) -> Home:
    """Return the node of a hospital that registered images or a table."""
    archive = folder / "archive"
    if data == "image":
        write_hospital(archive, 60)
    else:
        write_table_hospital(archive, seed=1, rows=200)
    settings = NodeSettings(site="site-1", federation="demo", host="localhost", port=1, node_id=1, threads=1)
    home = Home.make(folder / "node", settings, Keys.make(), ca=b"x", peers={}, policy=guarded())
    register(home, archive, label="finding", classes=("normal", "nodule"))
    return Home.load(home.directory)


def configuration(data: str) -> Config:
    """Return a training whose optimiser remembers something from round to round."""
    network = ["conv4", "data.image-size=16"] if data == "image" else ["mlp"]
    return load(
        None,
        [
            'task.classes=["normal","nodule"]',
            f'model.name="{network[0]}"',
            "model.width=4",
            'experiment.algorithms=["reptile"]',
            "experiment.shots=[]",
            'training.inner-optimizer="adam-kept"',
            "training.inner-steps=3",
            *network[1:],
        ],
    )


def messages(config: Config, shape: tuple[int, ...]) -> list[Message]:
    """Return what a coordinator sends first."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    parameters = parameters_of(config, "reptile", shape)
    phi = wire.vector(0.1 * torch.randn(parameters, generator=torch.Generator().manual_seed(0)))
    describe = wire.instruct(1, wire.DESCRIBE, wire.Instruction(config.to_json()), seconds=60)
    trains = [
        wire.instruct(1, wire.TRAIN, wire.Instruction(config.to_json(), "reptile", number, run="r"), phi)
        for number in (1, 2)
    ]
    return [describe, *trains]


@contextmanager
def working(home: Home) -> Iterator[Worker]:
    """Yield a worker of a node's, and end it."""
    node = config_of(home)
    worker = Worker(node, reach_of(home, node, home.logs / "worker.log"), seconds=120.0)
    try:
        yield worker
    finally:
        worker.stop()


@pytest.mark.parametrize("data", BOTH)
def test_a_confined_worker_computes_the_same_bits(tmp_path: Path, data: str) -> None:
    """It decodes, caches, splits, trains and remembers, and its log says that it is confined."""
    home, config = registered(tmp_path, data), configuration(data)
    node = config_of(home)
    sent = messages(config, (1, 16, 16) if data == "image" else (4,))
    with working(home) as worker:
        confined = [worker.serve(message) for message in sent]
        walls = worker.walls
    log = (home.logs / "worker.log").read_text()
    assert not [reply.error for reply in confined if reply.has_error()], log
    assert walls is not None
    assert (not walls.missing) == ("without network, other programs or files" in log)
    state = Path(home.settings.data[0].state)
    assert (state / "kept").is_dir()
    for left in state.glob("kept/*/*"):
        left.unlink()
    for message, reply in zip(sent, confined, strict=True):
        plain = answer(app, message, dict(node))
        if message.metadata.message_type == wire.DESCRIBE:
            assert wire.read_description(reply) == wire.read_description(plain)
        else:
            parameters = wire.parameters_of(message)
            told, expected = (wire.read_contribution(one, parameters) for one in (reply, plain))
            assert torch.equal(told.delta, expected.delta)
            assert told.delta.any()


def test_a_worker_has_no_line_to_what_deletes_shared_memory(tmp_path: Path) -> None:
    """Python's resource tracker stands outside of all walls and unlinks what it is told to."""
    home = registered(tmp_path, "table")
    with working(home) as worker:
        assert not worker.serve(messages(configuration("table"), (4,))[0]).has_error()
        opened = {os.readlink(file) for file in Path(f"/proc/{worker.pid}/fd").iterdir()}
    assert os.readlink(f"/proc/self/fd/{resource_tracker.getfd()}") not in opened


def test_a_coordinators_words_are_one_line_of_a_workers_log(tmp_path: Path) -> None:
    """A refusal names the label that was asked for, which can be anything."""
    home, config = registered(tmp_path, "table"), configuration("table")
    label = {"label": "x\n2026-11-27 04:00:00,000 INFO all is well\x1b[2J"}
    asked = config.model_copy(update={"task": config.task.model_copy(update=label)})
    with working(home) as worker:
        assert worker.serve(messages(asked, (4,))[0]).has_error()
    log = (home.logs / "worker.log").read_text()
    assert "registered for the label x 2026-11-27" in log
    assert "\x1b" not in log


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone chooses whom it ends")
def test_a_worker_is_ended_before_its_node_where_memory_runs_out(tmp_path: Path) -> None:
    """A coordinator's settings can take more than a machine has; what else runs there stays."""
    home = registered(tmp_path, "table")
    with working(home) as worker:
        assert not worker.serve(messages(configuration("table"), (4,))[0]).has_error()
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "1000"


def test_a_process_keeps_few_large_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many a coordinator's configurations ask for: the last used, and the one that is used now."""
    monkeypatch.setattr(site, "MOST_PARAMETERS", 150)

    def used(seed: int, width: int = 5) -> Learner:
        settings = ["model.name=mlp", f"seed={seed}", f"model.width={width}"]
        return site.learner_of("cpu", (4,), load(None, settings).to_json(), "reptile", 0)

    first, second = used(1), used(2)
    assert 2 * first.parameters <= 150 < 3 * first.parameters
    assert used(1) is first
    used(3)
    assert used(1) is first
    assert used(2) is not second
    large = used(4, width=50)
    assert used(4, width=50) is large
    assert used(1) is not first


def test_a_process_keeps_few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small each is: what stands around it, and its configuration, take memory as well."""
    monkeypatch.setattr(site, "_learners", {})
    for seed in range(site.MOST_LEARNERS + 3):
        settings = ["model.name=mlp", f"seed={seed}", "model.width=2"]
        site.learner_of("cpu", (4,), load(None, settings).to_json(), "reptile", 0)
    assert len(site._learners) == site.MOST_LEARNERS
