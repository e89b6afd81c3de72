"""Secure aggregation end to end, in process: the same mean as in plain, whoever drops out when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from client.vault import Vault
from common import wire
from common.algorithms import ALGORITHMS
from common.initialise import shared_weights
from common.secagg.encoding import dump
from common.secagg.encoding import load as read
from common.secagg.messages import Dealing, MaskRequest, Payload
from common.weights import pack
from server import evaluation
from server.app import common_input_shape, initial_weights, meta_train
from server.exchange import exchange
from server.gather import Gathered
from server.standing import Duty
from simulation.grid import InProcessGrid
from tests.server.rounds import NEVER, Lossy, Make, Round, same_mean, settings

FEDERATED = [
    name for name, one in ALGORITHMS.items() if one.local_update and not one.pooled and name != "fedbn"
]
"""Every algorithm that trains with others; FedBN, which needs a batch-normalised network, aside."""


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


def test_who_made_new_keys_comes_back(five: Make) -> None:
    """A hospital whose store was brought back is missed while its old key is asked for, and is in again."""
    nodes, keys = five()
    with Lossy(nodes, NEVER) as grid:
        each = Round(grid, settings(), keys)
        assert each.securely(1).sites == 5
        Vault(Path(str(nodes[2]["secrets"])) / "vault.db").rejoin()
        sizes = [each.securely(server_round).sites for server_round in range(2, 7)]
        assert min(sizes) == 4
        assert sizes[-1] == 5


def test_of_three_nobody_may_drop_and_the_next_round_goes_on(five: Make) -> None:
    """The slot is given up and everyone is told why; with all three back the next round has its sum."""
    nodes, keys = five(3)
    with Lossy(nodes, lambda what, site, turn: (what, site, turn) == (wire.TRAIN, "site-2", 1)) as grid:
        each = Round(grid, settings(), keys)
        given_up = each.securely(1)
        assert given_up.mean is None
        assert set(given_up.missing) == set(each.nodes)
        assert "too few others" in given_up.missing["site-1"]
        grid.lost = NEVER
        same_mean(each.securely(2), each.plainly(each.nodes, 2), each.bound(3))


@pytest.mark.parametrize("algorithm", FEDERATED)
def test_every_algorithm_ends_where_it_does_in_plain(five: Make, tmp_path: Path, algorithm: str) -> None:
    """Whole trainings: within the rounding of the plain ones.

    At a fixed clip, near to what such small gradients are: whether a delta lies just within one that follows
    them may hang on a rounding. Rounded weights draw other batches and halves, so all patients make every
    batch, and where halves are drawn there is one round.
    """
    nodes, keys = five()
    rounds = 1 if ALGORITHMS[algorithm].queries else 4
    over = [f'experiment.algorithms=["{algorithm}"]', "training.clip-quantile=0.0"]
    over += ["training.batch-size=0", f"training.rounds={rounds}"]
    config = settings(*over)
    if config.training_of(algorithm).clip_norm:
        config = settings(*over, f"algorithms.{algorithm}.clip-norm=0.5")
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
        assert [one["sites"] for one in end.history] == [5] * rounds
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
        dealt = each.secure._dealings(grid, sorted(each.nodes), found, Duty())
        asked: dict[str, Message] = {}
        original = each.secure._exchange

        def spy(
            grid: InProcessGrid, messages: dict[str, Message], *rest: object, **named: object
        ) -> set[str]:
            asked.update(messages)
            return original(grid, messages, *rest, **named)  # type: ignore[arg-type]

        each.secure._exchange = spy  # type: ignore[assignment, method-assign]
        each.secure._train(grid, dealt, each.instructions(), [], found, Duty())
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
