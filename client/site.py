"""What a node knows of itself: its hospital's folders, and the learner it computes with.

Everything comes from the node's own configuration, never from the coordinator:

| key | meaning |
|---|---|
| `site` | the hospital's name in the federation |
| `hospital` | its folder, or several, one a line |
| `device` | `auto`, `cpu` or `cuda` |
| `threads` | CPU threads for computing; 0: all cores |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from client.dataset import Hospital, join, open_hospital
from common.config import from_json
from common.initialise import learner_for
from common.learner import Learner, device_of


@dataclass(frozen=True)
class Node:
    """A node's own configuration."""

    site: str
    folders: tuple[Path, ...]
    device: str
    threads: int

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> Node:
        """Return the node that Flower's node configuration describes."""
        folders = tuple(Path(folder) for folder in str(node_config["hospital"]).splitlines())
        return cls(
            site=str(node_config["site"]),
            folders=folders,
            device=str(node_config.get("device", "auto")),
            threads=int(str(node_config.get("threads", 0))),
        )


def prepare(node: Node) -> None:
    """Give this process the node's number of threads; more than cores would slow everything tenfold."""
    threads = node.threads or len(os.sched_getaffinity(0))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@lru_cache(maxsize=256)
def hospital_of(node: Node, config_json: str) -> Hospital:
    """Return the node's hospital, opened once per process: its cases stay memory-mapped."""
    config = from_json(config_json)
    parts = [open_hospital(folder, config.data, config.task) for folder in node.folders]
    return parts[0] if len(parts) == 1 else join(node.site, parts)


@lru_cache(maxsize=8)
def learner_of(node_device: str, input_shape: tuple[int, ...], config_json: str) -> Learner:
    """Return a learner for such inputs, built once per process."""
    return learner_for(from_json(config_json), input_shape, device_of(node_device))
