"""Secure aggregation end to end, in process: the same mean as in plain, whoever drops out when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from client.app import app as client_app
from client.site import NodeConfig
from common import wire
from common.algorithms import ALGORITHMS
from common.config import Config, load
from common.errors import ConfigError
from common.initialise import shared_weights
from common.secagg.encoding import dump
from common.secagg.encoding import load as read
from common.secagg.messages import Dealing, MaskRequest, Payload
from common.weights import pack
from server import evaluation
from server.app import common_input_shape, initial_weights, meta_train
from server.exchange import exchange
from server.gather import Gathered, Plain
from server.secure import SecureSum, layout_of
from simulation.grid import InProcessGrid
from simulation.secrets import make_secrets
from tests.conftest import write_table_hospital

Lost = Callable[[str, str, int], bool]
"""Whether a message of this kind to this site, the n-th of its kind, is lost."""
FEDERATED = [
    name for name, one in ALGORITHMS.items() if one.local_update and not one.pooled and name != "fedbn"
]
"""Every algorithm that trains with others; FedBN, which needs a batch-normalised network, aside."""
Make = Callable[..., tuple[list[NodeConfig], dict[str, bytes]]]
NEVER: Lost = lambda kind, site, turn: False  # noqa: E731 - a name for a value


def settings(*over: str) -> Config:
    """Return a small configuration."""
    return load(
        None,
        [
            'task.classes=["normal","nodule"]',
            'model.name="mlp"',
            "model.width=4",
            "training.rounds=4",
            "training.inner-steps=5",
            "training.min-cohort=1",
            "training.round-timeout=60",
            'experiment.algorithms=["reptile"]',
            *over,
        ],
    )


class Lossy(InProcessGrid):
    """A grid on which chosen messages never arrive; it answers for them at once, as a SuperLink does."""

    def __init__(self, nodes: list[NodeConfig], lost: Lost) -> None:
        super().__init__(client_app, nodes, workers=1)
        self._names = [str(node["site"]) for node in nodes]
        self.lost = lost
        self._turns: dict[tuple[str, str], int] = {}
        self.sent: list[tuple[str, str]] = []

    def __enter__(self) -> Lossy:
        return self

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue what is not lost; answer the rest with an error."""
        kept, ids = [], []
        for message in messages:
            kind, site = message.metadata.message_type, self._names[message.metadata.dst_node_id - 2]
            turn = self._turns[kind, site] = self._turns.get((kind, site), 0) + 1
            self.sent.append((kind, site))
            if self.lost(kind, site, turn):
                identifier = str(10**9 + len(self.sent))
                message.metadata.__dict__["_message_id"] = identifier
                self._done[identifier] = wire.refuse(message, 2, "Node Unavailable")
                ids.append(identifier)
            else:
                kept.append(message)
                ids += super().push_messages([message])
        return ids


@pytest.fixture
def five(tmp_path: Path) -> Make:
    """Return a function that makes N table hospitals with their secrets."""

    def make(count: int = 5) -> tuple[list[NodeConfig], dict[str, bytes]]:
        names = [f"site-{number}" for number in range(1, count + 1)]
        folders = [
            write_table_hospital(tmp_path / "hospitals" / name, seed=number, rows=40 + 5 * number)
            for number, name in enumerate(names)
        ]
        keys = make_secrets(tmp_path / "secrets", names)
        nodes: list[NodeConfig] = [
            {
                "site": one.name,
                "hospital": str(one),
                "threads": 1,
                "secrets": str(tmp_path / "secrets" / one.name),
            }
            for one in folders
        ]
        return nodes, keys

    return make


class Round:
    """Rounds of one training, gathered plainly and securely from the same instructions."""

    def __init__(self, grid: Lossy, config: Config, keys: dict[str, bytes]) -> None:
        self.grid, self.config = grid, config
        self.sites = evaluation.describe(grid, config).all_of_them()
        self.nodes = {site: node for site, (node, _) in self.sites.items()}
        self.phi = pack(initial_weights(config, common_input_shape(self.sites.values())))
        self.training = config.training_of("reptile")
        self.secure = SecureSum(self.training, 16, len(self.phi), self.nodes, keys)

    def instructions(self, server_round: int = 1) -> dict[str, Message]:
        """Return the round's messages."""
        instruction = wire.Instruction(self.config.to_json(), "reptile", server_round)
        phi = wire.vector(self.phi)
        return {
            site: wire.instruct(node, wire.TRAIN, instruction, phi)
            for site, node in sorted(self.nodes.items())
        }

    def plainly(self, sites: Iterable[str], server_round: int = 1) -> Gathered:
        """Return what these sites bring together in plain."""
        chosen = {site: message for site, message in self.instructions(server_round).items() if site in sites}
        plain = Plain(self.training, len(self.phi), {node: site for site, node in self.nodes.items()})
        replies = exchange(self.grid, list(chosen.values()), timeout=20)
        return plain.gather(sorted(chosen), (reply for _, reply in replies))

    def securely(self, server_round: int = 1, *, last: bool = False) -> Gathered:
        """Return what everyone brings together securely."""
        then = [] if last else sorted(self.nodes)
        return self.secure.gather(self.grid, self.instructions(server_round), then)

    def bound(self, survivors: int) -> float:
        """Return the protocol's own bound on each coordinate's error."""
        layout = layout_of(self.training, self.secure.bits, len(self.phi), len(self.nodes))
        return layout.error_bound(survivors, survivors)


def same_mean(found: Gathered, plain: Gathered, bound: float) -> None:
    """Fail unless both are the same mean within the bound, over the same sites."""
    assert found.mean is not None
    assert plain.mean is not None
    assert found.sites == plain.sites
    assert found.episodes == plain.episodes
    assert found.loss_sum == pytest.approx(plain.loss_sum, abs=1e-4)
    assert float((found.mean - plain.mean).abs().max()) <= bound


def test_the_sum_is_the_plain_mean_round_after_round_in_two_exchanges(five: Make) -> None:
    """After the first round every round costs a train and an unmask message per site, and nothing else."""
    nodes, keys = five()
    with Lossy(nodes, NEVER) as grid:
        each = Round(grid, settings(), keys)
        for server_round in (1, 2, 3):
            plain = each.plainly(each.nodes, server_round)
            grid.sent.clear()
            same_mean(each.securely(server_round), plain, each.bound(5))
            kinds = {kind for kind, _ in grid.sent}
            first = {wire.ADVERTISE, wire.DEAL} if server_round == 1 else set()
            assert kinds == {wire.TRAIN, wire.UNMASK} | first
            assert len(grid.sent) == 5 * len(kinds)
        each.secure.finish(grid)
        again = replace(each.secure)
        assert again.gather(grid, each.instructions(), []).mean is None, "a finished run's id is refused"


@pytest.mark.parametrize("kind", [wire.ADVERTISE, wire.DEAL, wire.TRAIN])
def test_whoever_drops_before_masking_is_missed_and_comes_back(five: Make, kind: str) -> None:
    """Of five sites one drops: the sum is that of the four, and two rounds later it is in again."""
    nodes, keys = five()
    with Lossy(nodes, lambda what, site, turn: (what, site, turn) == (kind, "site-3", 1)) as grid:
        each = Round(grid, settings(), keys)
        others = sorted(set(each.nodes) - {"site-3"})
        found = each.securely(1)
        grid.lost = NEVER
        same_mean(found, each.plainly(others), each.bound(4))
        assert list(found.missing) == ["site-3"]
        sizes = [each.securely(server_round).sites for server_round in (2, 3)]
        assert sizes[-1] == 5


def test_whoever_drops_after_masking_is_still_in_the_sum(five: Make) -> None:
    """One of five does not unmask: four shares are enough, and its vector counts."""
    nodes, keys = five()
    with Lossy(nodes, lambda what, site, turn: (what, site) == (wire.UNMASK, "site-1")) as grid:
        each = Round(grid, settings(), keys)
        same_mean(each.securely(), each.plainly(each.nodes), each.bound(5))


def test_of_three_nobody_may_drop_and_the_next_round_goes_on(five: Make) -> None:
    """The slot is given up and everyone is told why; with all three back the next round has its sum."""
    nodes, keys = five(3)
    with Lossy(nodes, lambda what, site, turn: (what, site, turn) == (wire.TRAIN, "site-2", 1)) as grid:
        each = Round(grid, settings(), keys)
        given_up = each.securely(1)
        assert given_up.mean is None
        assert set(given_up.missing) == set(each.nodes)
        assert "given up" in given_up.missing["site-1"]
        grid.lost = NEVER
        same_mean(each.securely(2), each.plainly(each.nodes, 2), each.bound(3))


@pytest.mark.parametrize("algorithm", FEDERATED)
def test_every_algorithm_ends_where_it_does_in_plain(five: Make, tmp_path: Path, algorithm: str) -> None:
    """Whole trainings, resumed in the middle: within the rounding of the plain ones."""
    nodes, keys = five()
    config = settings(f'experiment.algorithms=["{algorithm}"]')
    if config.training_of(
        algorithm
    ).clip_norm:  # it sends a gradient: bounded nearer to what such small ones are
        config = settings(f'experiment.algorithms=["{algorithm}"]', f"algorithms.{algorithm}.clip-norm=0.5")
    ends: dict[bool, torch.Tensor] = {}
    for secure in (False, True):
        with Lossy(nodes, NEVER) as grid:
            sites = evaluation.describe(grid, config).all_of_them()
            initial = pack(shared_weights(config, algorithm, common_input_shape(sites.values())))
            identities = keys if secure else None
            end = meta_train(
                grid, config, algorithm, sites, initial, tmp_path / str(secure), identities=identities
            )
        ends[secure] = end.phi
        assert [one["sites"] for one in end.history] == [5] * 4
    moved = float((ends[False] - initial).abs().max())
    assert float((ends[True] - ends[False]).abs().max()) < 0.15 * moved  # rounding, and what Adam makes of it


def test_cohorts_that_change_from_round_to_round(five: Make, tmp_path: Path) -> None:
    """Six sites, four a round: who trains next deals without training now."""
    nodes, keys = five(6)
    config = settings("training.cohort=4", "training.rounds=5")
    with Lossy(nodes, NEVER) as grid:
        sites = evaluation.describe(grid, config).all_of_them()
        initial = pack(initial_weights(config, common_input_shape(sites.values())))
        end = meta_train(grid, config, "reptile", sites, initial, tmp_path / "training", identities=keys)
    assert [one["sites"] for one in end.history] == [4] * 5


def test_one_slot_gives_one_vector(five: Make) -> None:
    """The same message again gets the same bytes; other weights for the slot are refused by name."""
    nodes, keys = five()
    with Lossy(nodes, NEVER) as grid:
        each = Round(grid, settings(), keys)
        found = Gathered({})
        dealt = each.secure._dealings(grid, sorted(each.nodes), found)
        asked: dict[str, Message] = {}
        original = each.secure._exchange

        def spy(grid: InProcessGrid, messages: dict[str, Message], *rest: object, **named: object) -> None:
            asked.update(messages)
            original(grid, messages, *rest, **named)  # type: ignore[arg-type]

        each.secure._exchange = spy  # type: ignore[assignment, method-assign]
        each.secure._train(grid, dealt, each.instructions(), [], found)
        secured = wire.read_secured(asked["site-1"])
        request = read(MaskRequest, secured.request)
        node = each.nodes["site-1"]

        def again(phi: torch.Tensor, request: MaskRequest) -> Message:
            instruction = wire.Instruction(each.config.to_json(), "reptile", 1)
            message = wire.instruct(node, wire.TRAIN, instruction, wire.vector(phi))
            told = wire.Secured(each.secure.run, request=dump(request))
            ((_, reply),) = exchange(grid, [wire.secure(message, told)], timeout=20)
            return reply

        first, second = (wire.read_masked(again(each.phi, request))[1] for _ in range(2))
        assert first == second
        assert not np.array_equal(np.frombuffer(first, np.uint8), np.zeros(len(first)))
        moved = wire.instruct(
            node, wire.TRAIN, wire.Instruction(each.config.to_json(), "reptile", 1), wire.vector(each.phi + 1)
        )
        plan = replace(request.plan, payload=Payload.of(*wire.payload_of(moved)))
        other = again(each.phi + 1, replace(request, plan=plan))
        assert other.error.code == wire.INSECURE
        assert "site-1" in str(other.error.reason)


def test_robust_means_and_secure_sums_exclude_each_other(five: Make, tmp_path: Path) -> None:
    """What needs each site's own delta is refused, with the remedy."""
    nodes, keys = five(3)
    config = settings('training.aggregation="median"')
    with Lossy(nodes, NEVER) as grid:
        sites = evaluation.describe(grid, config).all_of_them()
        initial = pack(initial_weights(config, common_input_shape(sites.values())))
        with pytest.raises(ConfigError, match="needs each site's own delta"):
            meta_train(grid, config, "reptile", sites, initial, tmp_path, identities=keys)


def test_a_site_whose_shares_nobody_can_open_is_soon_left_out(five: Make) -> None:
    """It costs the others a slot, not the training."""
    nodes, keys = five()

    def garble(reply: Message) -> None:
        told = wire.read_secured(reply)
        name = "answer" if reply.metadata.message_type == wire.DEAL else "dealing"
        if getattr(told, name):
            dealing = read(Dealing, getattr(told, name))
            broken = replace(dealing, sealed={peer: bytes(len(one)) for peer, one in dealing.sealed.items()})
            reply.content.config_records["secured"][name] = dump(broken)

    class Garbling(Lossy):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                if reply.metadata.src_node_id == 6 and not reply.has_error() and wire.is_secured(reply):
                    garble(reply)
                yield reply

    with Garbling(nodes, NEVER) as grid:
        each = Round(grid, settings(), keys)
        rounds = [each.securely(server_round) for server_round in (1, 2, 3)]
    assert [one.sites for one in rounds] == [0, 4, 4]
    assert list(rounds[-1].missing) == ["site-5"]
