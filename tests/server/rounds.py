"""Rounds of secure aggregation in process, message by message: what its tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from flwr.app import Message
from flwr.common.constant import ErrorCode

from client.app import app as client_app
from client.site import NodeConfig
from common import wire
from common.bounds import layout_of
from common.config import Config, load
from common.weights import pack
from server import evaluation
from server.app import common_input_shape, initial_weights
from server.exchange import exchange
from server.gather import Gathered, Plain
from server.secure import SecureSum
from simulation.grid import InProcessGrid

Lost = Callable[[str, str, int], bool]
"""Whether a message of this kind to this site, the n-th of its kind, is lost."""
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

    def __init__(self, nodes: list[NodeConfig], lost: Lost, code: int = ErrorCode.NODE_UNAVAILABLE) -> None:
        super().__init__(client_app, nodes, workers=1)
        self._names = [str(node["site"]) for node in nodes]
        self.lost, self.code = lost, code
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
                self._done[identifier] = wire.refuse(message, self.code, "in the words of Flower")
                ids.append(identifier)
            else:
                kept.append(message)
                ids += super().push_messages([message])
        return ids


class Round:
    """Rounds of one training, gathered plainly and securely from the same instructions."""

    def __init__(self, grid: InProcessGrid, config: Config, keys: dict[str, bytes]) -> None:
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
        (found,) = plain.gather(sorted(chosen), (reply for _, reply in replies))
        return found

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
