"""A federation of 0.1.0 is carried over: nothing that protects a patient is lost on the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.supercore.task_identity import TaskIdentity
from typer.testing import CliRunner

from client.cli import app
from client.home import Home
from client.node import desk_of, vault_of
from client.policy import EVERYTHING, Policy, guarded, lacking, policy_of
from client.site import NodeConfig
from common import wire
from common.config import load
from common.errors import CheckpointError, SecAggError
from common.secagg.encoding import dump
from common.secagg.messages import Holders, UnmaskRequest
from common.secagg.reasons import Reason
from common.secagg.state import is_finished, restore
from server import checkpoint
from server.evaluation import describe
from server.exchange import exchange
from server.gather import Plain
from server.roster import Roster
from server.runs import find_run
from simulation.grid import FIRST_NODE, InProcessGrid
from tests.upgrade.conftest import Older

TAKEN_OUT = {"messages", "min-cohort", "max-rounds", "explain"}
"""What st-olaf's operator had taken out of its policy.toml."""


def test_a_key_that_an_older_policy_lacks_is_strict(older: Older) -> None:
    """0.1.0 allowed st-olaf's coordinator what it liked there; now its node allows what a new one does."""
    policy = policy_of(older.home("st-olaf").policy)
    before = older.expected["policies"]["st-olaf"]
    assert before["min-cohort"] == 2
    assert "evaluate" in before["messages"]
    given = policy.model_fields_set
    assert policy == Policy(**{name: getattr(policy, name) for name in given})
    assert (policy.messages, policy.min_cohort, policy.max_rounds) == (("describe", "train"), 3, 1000)
    assert not policy.explain


def test_what_an_older_policy_says_itself_still_holds(older: Older) -> None:
    """Every key that st-anna's file has means what it meant."""
    policy = policy_of(older.home("st-anna").policy)
    now = policy.model_dump(mode="json", by_alias=True)
    assert {key: now[key] for key in older.expected["policies"]["st-anna"]} == older.expected["policies"][
        "st-anna"
    ]


def test_status_shows_what_became_stricter(older: Older) -> None:
    """Key, what holds, and what 0.1.0 took: its own words for the old keys, no bound for the new ones."""
    home = older.home("st-olaf")
    told = {one.key: one for one in lacking(home.policy)}
    before = older.expected["policies"]["st-olaf"]
    assert {key for key in told if key in before} == TAKEN_OUT
    assert all(told[key].before == before[key] for key in TAKEN_OUT)
    assert {"min-patients", "min-step-patients", "hold-out"} <= told.keys()
    shown = CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output
    rows = {words[0]: words[1:] for line in shown.splitlines() if (words := line.split())}
    assert rows["min-cohort"] == ["3", "2"]
    assert rows["min-patients"] == ["10", str(EVERYTHING.min_patients)]
    assert all(one in shown for one in told)


def test_a_new_hospital_is_shown_no_difference(older: Older) -> None:
    """Its file has every key."""
    home = older.home("st-anna")
    home.policy.write_text(guarded())
    assert not lacking(home.policy)
    assert "lacks keys" not in CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output
    home.policy.write_text("min-cohort = many")
    assert "not valid TOML" in CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output


def test_an_older_checkpoint_is_refused_with_its_remedy(older: Older) -> None:
    """Whatever configuration it is resumed with: what it says may have been computed by other rules."""
    run = find_run(older.federation, "run-001")
    (path,) = Path(run.folder).rglob("checkpoint.safetensors")
    with pytest.raises(CheckpointError, match=r"written by Zamenis an earlier version.*Begin the run anew"):
        checkpoint.load(path, identity="")
    assert run.hospitals == sorted(older.homes)


def test_an_older_node_is_refused_by_name(older: Older) -> None:
    """Asked what it is or to train, it says but that it runs another version, in 0.1.0's own words."""
    names = list(older.homes)

    def serve(message: Message, context: Context) -> Message:
        told = older.expected["refusals"][str(context.node_config["site"])]
        return wire.refuse(message, *told[message.metadata.message_type])

    nodes: list[NodeConfig] = [{"site": name} for name in names]
    config = load(None, ['experiment.algorithms=["reptile"]', "training.min-cohort=1"])
    with InProcessGrid(serve, nodes, workers=1) as grid:  # type: ignore[arg-type]
        by_node = dict(zip(grid.get_node_ids(), names, strict=True))
        present = describe(grid, config, names=by_node)
        assert not present.sites
        assert [trouble.split(":")[0] for trouble in present.troubles] == names
        assert all("install the same" in trouble for trouble in present.troubles)
        told = wire.instruct(FIRST_NODE, wire.TRAIN, wire.Instruction(config.to_json(), "reptile", 1))
        ((_, reply),) = exchange(grid, [told], timeout=20)
        assert reply.error.code == wire.UNKNOWN_PROTOCOL
        plain = Plain(config.training_of("reptile"), 3, by_node)
        (found,) = plain.gather(sorted(names), [reply])
    assert "install the same" in found.missing["st-anna"]


def test_the_coordinators_roster_is_read_as_it_was(older: Older) -> None:
    """Nobody enrols again: every hospital's identity key is the one that the coordinator knows."""
    keys = Roster(older.federation.roster).identity_keys()
    assert keys == {site: home.identity.public for site, home in older.homes.items()}


def test_whom_a_digest_confirmed_nobody_has_confirmed(older: Older) -> None:
    """It was agreed on with anybody for everybody; `status` says so until each is confirmed by name."""
    for site, home in older.homes.items():
        before = {name for name, confirmed in older.expected["confirmed"][site].items() if confirmed}
        others = older.homes.keys() - {site}
        assert before == others
        assert home.peers().held.former == others
        assert home.roster(home.peers()).unconfirmed(others) == len(others)
        shown = " ".join(CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output.split())
        assert f"{', '.join(sorted(others))}; zamenis-hospital confirm; 0.1.0 confirmed a digest" in shown
        home.peers().confirm(site, home.identity, {name: older.home(name).fingerprint for name in others})
        assert home.roster(home.peers()).unconfirmed(others) == 0
        assert (
            "0.1.0 confirmed a digest"
            not in CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output
        )


def kept(home: Home) -> dict[str, bytes]:
    """Return a node's states of secure aggregation, by run."""
    with closing(sqlite3.connect(home.state / "vault.db")) as database:
        return dict(database.execute("SELECT id, state FROM run").fetchall())


def test_an_unfinished_secure_run_is_refused_by_name(older: Older) -> None:
    """Its state was written by other rules: the node says that the run is over, whatever is asked of it."""
    home = older.home("st-anna")
    (run,) = (run for run, data in kept(home).items() if not is_finished(data))
    with pytest.raises(SecAggError) as refused:
        restore(kept(home)[run])
    assert refused.value.reason == Reason.OTHER_VERSION
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    for kind in (wire.ADVERTISE, wire.DEAL, wire.UNMASK):
        holders, request = dump(Holders(run, 1, 3, 2, ())), dump(UnmaskRequest(run, 1, {}, ()))
        asked = wire.Secured(run, holders=holders, request=request)
        reply = desk_of(home).answer(wire.ask_secured(1, kind, asked, seconds=60.0), lambda message: message)
        assert reply.error.code == wire.INSECURE
        assert "the run is finished" in str(reply.error.reason)
        assert "start a run with a new id" in str(reply.error.reason)


@pytest.mark.parametrize("how", ["the node starts", "the coordinator ends the run"])
def test_the_secrets_of_an_unfinished_run_go(older: Older, how: str) -> None:
    """A node that starts on an older vault erases what nobody can go on with; the run's id stays used."""
    home = older.home("st-anna")
    (run,) = (run for run, data in kept(home).items() if not is_finished(data))
    if how == "the node starts":
        vault_of(home).tidy()
    else:
        vault_of(home).finish(run)
    assert all(is_finished(data) for data in kept(home).values())
    assert kept(home).keys() == kept(older.home("st-vera")).keys()
    with pytest.raises(SecAggError) as refused:
        restore(kept(home)[run])
    assert refused.value.reason == Reason.FINISHED_RUN
