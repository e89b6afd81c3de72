"""Messages out, replies back: what is said of one that could not be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Message

from client.app import app
from common import wire
from common.config import load
from server import evaluation
from simulation.grid import InProcessGrid


class Unreachable(InProcessGrid):
    """A grid that takes no message for its first node, as a SuperLink does whose node is gone."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue the others' messages."""
        return ["", *super().push_messages(list(messages)[1:])]


def test_what_could_not_be_sent_is_not_late(table_hospitals: Callable[[int], Path]) -> None:
    """It is answered at once, and for what it is; nobody waits for it."""
    folders = sorted(table_hospitals(2).iterdir())
    config = load(None, ['task.classes=["normal", "nodule"]', "model.name=linear"])
    nodes = [{"site": folder.name, "hospital": str(folder), "device": "cpu"} for folder in folders]
    with Unreachable(app, nodes, workers=1) as grid:
        names = dict(zip(grid.get_node_ids(), (folder.name for folder in folders), strict=True))
        found = evaluation.describe(grid, config, names=names, timeout=3600.0)
    assert list(found.sites) == ["site-2"]
    assert found.troubles == ("site-1: its node is not connected",)
    assert wire.SILENT not in found.troubles[0]
