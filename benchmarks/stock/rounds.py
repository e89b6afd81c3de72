"""The rounds that are timed, the same on every side: the coordinator's own, over whatever grid."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from common import weights
from common.config import Config
from common.initialise import shared_weights
from server import evaluation, outer_loop
from server.app import common_input_shape
from server.exchange import exchange
from server.strategy import MetaStrategy

PATIENCE = 600.0
"""Seconds that a round may take."""
Way = Callable[[Grid, list[Message]], Iterable[Message]]


def _prompt(grid: Grid, messages: list[Message]) -> Iterable[Message]:
    return (reply for _, reply in exchange(grid, messages, timeout=PATIENCE))


def _stock(grid: Grid, messages: list[Message]) -> Iterable[Message]:
    return grid.send_and_receive(messages, timeout=PATIENCE)


WAYS: dict[str, Way] = {"prompt": _prompt, "stock": _stock}
"""How replies are waited for: by our `exchange`, which looks often, or by the grid's own method."""


class Rounds:
    """Reptile over every connected hospital, round by round."""

    def __init__(self, grid: Grid, config: Config) -> None:
        self._grid = grid
        sites = evaluation.describe(grid, config).all_of_them()
        phi = weights.pack(shared_weights(config, "reptile", common_input_shape(sites.values())))
        nodes = {name: node for name, (node, _) in sites.items()}
        self._strategy = MetaStrategy(config, "reptile", nodes, outer_loop.init(phi))

    def timed(self, way: Way) -> float:
        """Return the seconds of one round, from phi to the next phi."""
        started = time.perf_counter()
        turn = self._strategy.state.server_round + 1
        messages = self._strategy.configure_train(turn, ArrayRecord(), ConfigRecord(), self._grid)
        self._strategy.aggregate_train(turn, way(self._grid, messages))
        return time.perf_counter() - started

    def digest(self) -> str:
        """Return a digest of phi: two sides that did the same work agree on it."""
        return hashlib.sha256(self._strategy.state.phi.contiguous().numpy().tobytes()).hexdigest()
