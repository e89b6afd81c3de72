"""The worst attacks of a coordinator on secure aggregation, over a real SuperLink, on thirteen hospitals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from client.policy import guarded
from common import weights, wire
from common.bounds import layout_of
from common.initialise import shared_weights
from common.secagg import aggregator
from common.secagg.encoding import load
from common.secagg.identity import Identity
from common.secagg.messages import MASKED, Masked, MaskRequest, UnmaskAnswer, UnmaskRequest
from common.secagg.numbers import Numbers
from common.secagg.reasons import Reason, refusal
from server.link import open_run
from server.secure import SecureSum
from simulation.rehearse import federation
from tests.common.secagg.adversary import spread
from tests.deploy.conftest import Quiet
from tests.deploy.crowd import Coordinator, Crowd, crowd
from tests.deploy.stage import small

NAMES = [f"h{number:03d}" for number in range(13)]
LAX = guarded().replace("low-threshold = false", "low-threshold = true").replace("cohort = 3", "cohort = 2")
"""Allows whatever the inequalities bear, so that no second wall stands before the first."""
COLUMNS = 4
"""Of a test hospital's table."""


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """Return thirteen hospitals before a coordinator's service."""
    folder = tmp_path_factory.mktemp("thirteen") / "stage"
    config = small('secure-aggregation.where="network"', "training.inner-steps=5")
    with federation([], config, folder, Quiet()) as rehearsal, crowd(rehearsal, config, NAMES, LAX) as found:
        yield found


@pytest.fixture
def coordinator(thirteen: Crowd, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Coordinator]:
    """Return a run over the coordinator's own SuperLink."""
    phi = weights.pack(shared_weights(thirteen.config, "reptile", (COLUMNS,)))
    with open_run(thirteen.federation, tmp_path) as grid:
        yield Coordinator(thirteen, grid, request.node.name, phi)


def masked(replies: dict[str, Message]) -> dict[str, Masked]:
    """Return the vectors that came, by hospital."""
    found = {}
    for name, reply in replies.items():
        secured, vector = wire.read_masked(reply)
        found[name] = replace(load(Masked, secured.answer), vector=vector)
    return found


def test_naming_another_key_opens_nobodys_update(coordinator: Coordinator) -> None:
    """Thirteen at t = 8: the victim masks with eight, the twelve with all.

    Then another run's `advertise` names another key for the victim, by which its signature on the twelve's
    plan is forged. Everybody refuses; the operator sees the other key; an honest sum opens as ever.
    """
    there, forged = coordinator.crowd, Identity.make()
    victim, *others = NAMES
    requests = coordinator.requests(coordinator.holders(1, Numbers(13, 8, 12)))
    everyone = requests[victim].plan
    plan = replace(everyone, manifests=everyone.manifests[:8])
    sealed = {peer: requests[victim].sealed[peer] for peer in plan.cohort[1:]}
    sent = masked(coordinator.train({**requests, victim: MaskRequest(plan, sealed)}))
    assert sent.keys() == set(NAMES)
    signatures = {name: sent[name].signature for name in others}
    signatures[victim] = forged.sign(MASKED, coordinator.run, 1, everyone.digest())
    told = {**there.identities, victim: forged.public}
    assert len(coordinator.advertise(others, told, run="another")) == len(others)
    named = spread(plan.cohort[1:], others, 8, 5)
    asked = {}
    for name in others:
        survivors = {one: signature for one, signature in signatures.items() if one not in named[name]}
        asked[name] = UnmaskRequest(coordinator.run, 1, survivors, tuple(sorted(named[name])))
    for name, reply in coordinator.unmask(asked).items():
        assert reply.error.code == wire.INSECURE
        assert reply.error.reason == f"{name}: {refusal(Reason.UNTRUSTED, victim)}"
    for name in others:
        peer = there.homes[name].peers().pinned[victim]
        assert (peer.public, peer.confirmed) == (there.identities[victim], True)
        assert peer.pending == forged.public
    assert f"another key    {victim};" in there.tell(others[0], "status")
    check_honest_sum(coordinator)


def check_honest_sum(coordinator: Coordinator) -> None:
    """Assert that an honest coordinator's next sum is the mean of everybody's update."""
    there, config = coordinator.crowd, coordinator.crowd.config
    bits, parameters = config.secure_aggregation.bits, len(coordinator.phi)
    there.updates.clear()
    sums = SecureSum(config.training, bits, parameters, there.nodes, there.identities)
    found = sums.gather(coordinator.grid, {name: coordinator.instruction(name) for name in NAMES}, ())
    assert (found.sites, found.missing) == (len(NAMES), {})
    assert found.mean is not None
    plain = torch.stack([update for name in NAMES for update in there.updates[name]]).double().mean(0)
    bound = layout_of(config.training, bits, parameters, len(NAMES)).error_bound(len(NAMES), len(NAMES))
    assert (found.mean - plain).abs().max() <= bound


def test_a_policy_withdrawn_is_heeded_in_the_middle_of_a_slot(coordinator: Coordinator) -> None:
    """Two withdraw after masking: no stored vector leaves again, neither unmasks, the others' sum opens."""
    there = coordinator.crowd
    holders = coordinator.holders(1)
    requests = coordinator.requests(holders)
    there.updates.clear()
    slot = aggregator.Slot(coordinator.roster, holders, requests[NAMES[0]].plan)
    for one in masked(coordinator.train(requests)).values():
        slot.add(one)
    mute, strict = NAMES[:2]
    withdraw(there, mute, 'messages = ["describe", "train"]', "messages = []")
    withdraw(there, strict, "min-cohort = 2", "min-cohort = 50")
    again = coordinator.train({name: requests[name] for name in (mute, strict)})
    replies = coordinator.unmask(dict.fromkeys(NAMES, slot.request()))
    for told in (again, replies):
        assert told[mute].error.code == wire.FORBIDDEN
        assert "messages in its policy.toml" in str(told[mute].error.reason)
        assert told[strict].error.code == wire.INSECURE
        assert str(refusal(Reason.TOO_FEW_HONEST)) in str(told[strict].error.reason)
    for name in NAMES[2:]:
        slot.answer(load(UnmaskAnswer, wire.read_secured(replies[name]).answer))
    assert slot.finish().survivors == tuple(NAMES)
    assert {name: len(updates) for name, updates in there.updates.items()} == dict.fromkeys(NAMES, 1)


def withdraw(there: Crowd, name: str, old: str, new: str) -> None:
    """Change one line of a hospital's policy.toml."""
    path = there.homes[name].policy
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
