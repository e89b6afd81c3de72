"""What stands between a coordinator's messages and whoever trains."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.peers import peers_of
from client.policy import guarded, starting
from client.secure import UNKNOWN_KIND, Desk
from client.site import MOST_OPEN, Node, NodeConfig, hospital_of
from client.vault import Vault
from client.worker import answer
from common import wire
from common.config import Config, load
from common.errors import DataError, PolicyError, WireError
from common.initialise import parameters_of
from common.secagg.identity import Identity
from common.secagg.numbers import Policy
from common.secagg.site import Member
from tests.conftest import write_table_hospital


@pytest.fixture
def config() -> Config:
    """Return a configuration for the table hospital."""
    return load(None, ['task.classes=["normal","nodule"]', 'model.name="mlp"', "model.width=4"])


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    """Return the node of a table hospital that is registered for its label and classes."""
    folder = write_table_hospital(tmp_path / "site-1", seed=1)
    tasks = '["classification", "finding", "normal", "nodule"]'
    return {"site": "site-1", "hospital": str(folder), "threads": 1, "device": "cpu", "tasks": tasks}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Return the desk of a hospital that insists on secure aggregation."""
    identity = Identity.make()
    peers = tmp_path / "peers.toml"
    peers.write_text("")
    member = Member("site-1", identity, peers_of(peers).roster("site-1", identity), Policy())
    return Desk(member, Vault(tmp_path / "vault.db"), starting(), learn=lambda _: member)


def message(kind: str, config: Config) -> Message:
    """Return a train instruction under any name."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    phi = wire.vector(torch.zeros(3))
    return wire.instruct(5, kind, wire.Instruction(config.to_json(), "reptile", 1), phi)


@pytest.mark.parametrize(
    "kind", ["train", "train.default", "train.other", "query.zzz", "query", "evaluate.x"]
)
def test_no_other_name_gets_a_plain_update_out(desk: Desk, config: Config, kind: str) -> None:
    """Flower routes `train.default` to the same function as `train`: nothing but what is known goes in."""

    def inner(asked: Message) -> Message:
        raise AssertionError("it must not be asked to train")

    reply = desk.answer(message(kind, config), inner)
    known = (wire.FORBIDDEN, f"site-1: {PolicyError('secure-aggregation')}")
    other = (wire.REFUSED, f"site-1: {UNKNOWN_KIND}")
    assert (reply.error.code, reply.error.reason) == (known if kind == wire.TRAIN else other)


def test_the_app_itself_knows_no_other_name(node: NodeConfig, config: Config) -> None:
    """Behind the desk too."""
    reply = answer(app, message("train.default", config), dict(node))
    assert reply.error.code == wire.REFUSED


@pytest.mark.parametrize(
    "override",
    ['task.label="a"', 'task.classes=["normal","nodule","Mueller"]', 'task.classes=["0.5","Mueller"]'],
)
def test_no_column_and_no_value_is_counted_but_those_registered(
    node: NodeConfig, config: Config, override: str
) -> None:
    """A coordinator cannot call the roll of a column that was never registered."""
    asked = load(None, ['task.classes=["normal","nodule"]', override])
    with pytest.raises(DataError, match="no folder is registered for the label"):
        hospital_of(Node.of(node), asked.to_json())
    assert len(hospital_of(Node.of(node), config.to_json()).adaptation) > 0


def test_a_coordinators_configurations_do_not_fill_a_nodes_memory(node: NodeConfig) -> None:
    """However many it makes up, those used last are open, and the others are let go."""
    opened = []
    for size in range(16, MOST_OPEN + 19):
        asked = load(None, ['task.classes=["normal","nodule"]', f"data.image-size={size}"])
        opened.append(weakref.ref(hospital_of(Node.of(node), asked.to_json())))
    gc.collect()
    assert [hospital() is not None for hospital in opened] == [False] * 3 + [True] * MOST_OPEN


def test_names_that_the_coordinator_makes_up_are_not_written_down(tmp_path: Path) -> None:
    """Neither a terminal's commands nor short keys nor a flood."""
    path = tmp_path / "peers.toml"
    path.write_text("")
    key = Identity.make().public
    floods = [
        {"site-2\x1b[2K": key},
        {"site-2": b"xy"},
        {f"site-{number}": key for number in range(300)},
    ]
    for told in floods:
        with pytest.raises(WireError):
            peers_of(path).learn("site-1", told)
    assert path.read_text() == ""


def test_a_network_beyond_the_bound_is_refused_before_it_is_built(
    node: NodeConfig, config: Config, tmp_path: Path
) -> None:
    """Forty thousand channels would take a hundred gigabytes; the refusal takes none."""
    policy = tmp_path / "policy.toml"
    policy.write_text(guarded())
    wide = load(
        None,
        ['task.classes=["normal","nodule"]', 'model.name="mlp"', "model.width=100000", "experiment.shots=[]"],
    )
    reply = answer(app, message("train", wide), {**node, "policy": str(policy)})
    assert reply.error.code == wire.FORBIDDEN
    assert "max-parameters" in str(reply.error.reason)
    assert parameters_of(config, "reptile", (4,)) == 4 * 4 + 4 + 4 * 4 + 4 + 4 + 1


@pytest.fixture
def simulated(node: NodeConfig, tmp_path: Path) -> NodeConfig:
    """Return the node with secrets of its own, as a simulated hospital has them, and a policy."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "identity.key").write_bytes(Identity.make().secret)
    (secrets / "peers.toml").write_text("")
    (tmp_path / "policy.toml").write_text(guarded())
    return {**node, "secrets": str(secrets), "policy": str(tmp_path / "policy.toml")}


def test_a_simulated_hospitals_desk_stands_before_it(simulated: NodeConfig, tmp_path: Path) -> None:
    """Its vault lies with its secrets, its policy holds, and no message that lacks a part is answered."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    identities = {"site-1": bytes(32), "site-2": Identity.make().public}
    asked = wire.ask_secured(1, wire.ADVERTISE, wire.Secured("run", identities=identities), seconds=60.0)
    assert not answer(app, asked, dict(simulated)).has_error()
    assert (tmp_path / "secrets" / "vault.db").exists()
    (tmp_path / "policy.toml").write_text(guarded().replace('"train"', '"evaluate"'))
    reply = answer(app, asked, dict(simulated))
    assert (reply.error.code, str(reply.error.reason)) == (
        wire.FORBIDDEN,
        f"site-1: {PolicyError('messages')}",
    )
    del asked.content["identities"]
    reply = answer(app, asked, dict(simulated))
    assert reply.error.code == wire.REFUSED
    assert str(reply.error.reason).startswith("site-1: a message of secure aggregation lacks a part")
