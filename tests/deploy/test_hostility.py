"""Who lies, who is not who they say, and who was never let in: nobody else is disturbed, nothing leaks."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, Message, RecordDict

from client.fleet import Fleet, LineError, NotAdmittedError
from client.home import Home
from client.node import state_of
from client.site import NodeConfig
from client.worker import answer
from common import wire
from server.federation import found
from simulation.rehearse import Rehearsal, RehearsalError, free_port
from tests.conftest import write_table_hospital
from tests.deploy.stage import Attempt, Impostor, allow_plain, connected, phi, small, until

EVERYONE = ("site-1", "site-2", "site-3")


@pytest.fixture(scope="module")
def liar(stage: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Return a fourth hospital that was admitted in good faith; its node is stopped."""
    connected(stage, *EVERYONE)
    folder = write_table_hospital(tmp_path_factory.mktemp("liar") / "site-4", seed=4)
    stage.join(folder, small())
    allow_plain(stage, "site-4")
    stage.tell("site-4", "stop")
    yield Home.load(stage.node("site-4"))
    stage.coordinate("revoke", "site-4")


def honest(message: Message, config: NodeConfig) -> Message:
    """Answer as an honest node does."""
    from client.app import app

    return answer(app, message, dict(config))


def garbage(message: Message, reply: Message) -> Message:
    """Answer with something else altogether."""
    return Message(RecordDict({"surprise": ArrayRecord([torch.ones(3).numpy()])}), reply_to=message)


def with_delta(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Message, Message], Message]:
    """Return a liar that sends an honest update with its delta changed."""

    def lie(message: Message, reply: Message) -> Message:
        parameters = wire.parameters_of(message)
        told = wire.read_contribution(reply, parameters)
        return wire.reply_contribution(message, replace(told, delta=change(told.delta)))

    return lie


def of_another_type(message: Message, reply: Message) -> Message:
    """Answer with a delta of whole numbers, declared as what it is not."""
    vector = reply.content.array_records["delta"]["vector"]
    vector.data = vector.data[: len(vector.data) // 2]
    return Message(reply.content, reply_to=message)


LIES = (
    garbage,
    with_delta(lambda delta: torch.full_like(delta, float("nan"))),
    with_delta(lambda delta: delta[:-1]),
    of_another_type,
    with_delta(lambda delta: 1e4 * delta),
)
"""Something else, not a number, another shape, another type, and far too large."""


def test_a_lying_hospital_is_left_out_and_the_others_go_on(
    stage: Rehearsal, liar: Home, run_file: Path
) -> None:
    """Another lie every round: the run ends with what the honest three sent, and says who was left out."""

    def lying(message: Message, config: NodeConfig) -> Message:
        reply = honest(message, config)
        if message.metadata.message_type != "train":
            return reply
        return LIES[wire.place_of(message.metadata.group_id)[1] - 1](message, reply)

    with Impostor(liar, lying):
        connected(stage, *EVERYONE, "site-4")
        over = ("--set", f"training.rounds={len(LIES)}", "--set", "training.inner-steps=5")
        run = Attempt(stage, "run", str(run_file), *over)
        run.end()
    assert [one["sites"] for one in run.rounds()] == [3] * len(LIES)
    assert run.log.count("site-4 is left out") == len(LIES)
    assert torch.isfinite(phi(run.folder)).all()


def test_a_hospital_that_fails_tells_the_coordinator_no_more_than_that(
    stage: Rehearsal, liar: Home, run_file: Path
) -> None:
    """Its data are gone: its own log knows the file; the coordinator learns a sentence of ours."""
    (folder,) = (Path(one.folder) for one in liar.settings.data)
    (folder / "table.csv").rename(folder / "table.away")
    stage.start("site-4")
    try:
        connected(stage, *EVERYONE, "site-4")
        run = Attempt(stage, "run", str(run_file), "--set", "training.rounds=1")
        told = run.end()
    finally:
        stage.tell("site-4", "stop")
        (folder / "table.away").rename(folder / "table.csv")
    assert "site-4: its data cannot be used for this run; logs/node.log at the hospital says why." in told
    everything = told + "".join(
        path.read_text(errors="replace")
        for path in stage.coordinator.rglob("*")
        if path.suffix in {".log", ".json"}
    )
    assert str(folder.parent) not in everything
    assert "Traceback" not in told
    assert str(folder) in (stage.node("site-4") / "logs" / "node.log").read_text()


def test_a_policy_refuses_and_says_which_key(stage: Rehearsal, run_file: Path) -> None:
    """A hospital that allows fewer rounds takes no part; the file is read anew for every message."""
    policy = stage.node("site-3") / "policy.toml"
    before = policy.read_text()
    policy.write_text(before.replace("max-rounds = 1000", "max-rounds = 1"))
    try:
        run = Attempt(stage, "run", str(run_file), "--set", "training.rounds=2")
        told = run.end()
    finally:
        policy.write_text(before)
    assert "site-3: this hospital's policy does not allow it (max-rounds in its policy.toml)" in told
    assert [one["sites"] for one in run.rounds()] == [2, 2]


def test_a_name_is_given_once_and_kept(stage: Rehearsal, liar: Home, run_file: Path) -> None:
    """No second hospital is admitted under a name, and a node cannot call itself by another's."""
    with pytest.raises(RehearsalError, match="site-1"):
        stage.coordinate("admit", "SITE-1")

    def as_another(message: Message, config: NodeConfig) -> Message:
        return honest(message, {**config, "site": "site-1"})

    with Impostor(liar, as_another):
        connected(stage, *EVERYONE, "site-4")
        run = Attempt(stage, "run", str(run_file), "--set", "training.rounds=1")
        told = run.end()
    assert "site-4: calls itself by another name" in told
    assert [one["sites"] for one in run.rounds()] == [3]


def test_a_key_that_nobody_registered_opens_nothing(stage: Rehearsal, liar: Home) -> None:
    """A new key is turned away, whatever node it claims to be."""
    where = liar.settings
    stranger = ec.generate_private_key(ec.SECP384R1())
    line = Fleet(f"{where.host}:{where.port}", liar.ca.read_bytes(), stranger, where.node_id)
    with pytest.raises(NotAdmittedError, match="revoked"), line:
        pass


def test_the_world_reaches_nothing_but_the_fleet_and_enrolment(stage: Rehearsal) -> None:
    """Flower's own control interface trusts whoever reaches it: ours does not, even from this machine."""
    import httpx

    context = ssl.create_default_context(cafile=str(stage.coordinator / "ca.pem"))
    with httpx.Client(verify=context, base_url=f"https://localhost:{stage.port}") as client:
        for path in (
            "control/list-nodes",
            "control/start-run",
            "control/register-node",
            "fleet/register-node",
        ):
            assert client.post(f"/v1/{path}").status_code == 404
        for path in ("/docs", "/openapi.json", "/"):
            assert client.get(path).status_code == 404
        secret = {"x-zamenis-control": "0" * 64}
        for path in ("runtime/acquire-task", "runtime/pull-object", "control/list-nodes"):
            assert client.post(f"/v1/{path}", content=b"").status_code == 404
            assert client.post(f"/v1/{path}", headers=secret).status_code == 404
        packed = client.post("/v1/fleet/pull-messages", headers={"Content-Encoding": "gzip"})
        assert packed.status_code == 415


def test_a_man_in_the_middle_is_not_spoken_to(stage: Rehearsal, tmp_path: Path) -> None:
    """Another federation's certificate at the coordinator's address: not a byte is sent."""
    port, heard = free_port(), bytearray()
    other = found(tmp_path / "other", "rehearsal", "localhost", port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.certificate, other.key)
    listener = socket.create_server(("127.0.0.1", port))

    def listen() -> None:
        while True:
            try:
                plain, _ = listener.accept()
                with context.wrap_socket(plain, server_side=True) as secured:
                    heard.extend(secured.recv(1))
            except ssl.SSLError:
                continue
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    home = Home.load(stage.node("site-1"))
    line = Fleet(f"localhost:{port}", home.ca.read_bytes(), home.keys().node, home.settings.node_id)
    with pytest.raises(LineError, match="does not show this federation's certificate"), line:
        pass
    listener.close()
    assert not heard


def test_a_revoked_hospital_is_out_at_once(stage: Rehearsal, run_file: Path, tmp_path: Path) -> None:
    """Its node learns it, keeps trying in vain, and the others' run ends as ever."""
    stage.join(write_table_hospital(tmp_path / "site-5", seed=5), small())
    connected(stage, *EVERYONE, "site-5")
    try:
        stage.coordinate("revoke", "site-5")
        home = Home.load(stage.node("site-5"))
        until(lambda: "does not admit this hospital" in state_of(home).why)
        run = Attempt(stage, "run", str(run_file), "--set", "training.rounds=1")
        run.end()
        assert [one["sites"] for one in run.rounds()] == [3]
        assert "revoked" in stage.coordinate("roster")
    finally:
        stage.tell("site-5", "stop")


def test_nothing_speaks_to_anybody_but_the_coordinator(stage: Rehearsal, connections: Path) -> None:
    """Every connection that any process of the federation opened went to this machine: no telemetry."""
    time.sleep(0.1)
    opened = connections.read_text().splitlines()
    assert len(opened) > 10
    foreign = [line for line in opened if not ("localhost" in line or "127.0.0.1" in line or "'::1'" in line)]
    assert not [line for line in foreign if "AF_UNIX" not in line and "/" not in line], foreign[:5]
    told = json.loads((stage.node("site-1") / "state" / "node.json").read_text())
    assert told["state"] == "connected"
