"""What a node knows of itself: its hospital's folders, and the learner it computes with.

Everything comes from the node's own configuration, never from the coordinator:

| key | meaning |
|---|---|
| `site` | the hospital's name in the federation |
| `hospital` | its folder, or several, one a line; a run uses those that have its label |
| `state` | where each folder's secret and cache are, one a line; empty: in the folder's own `.zamenis` |
| `labels` | where each folder's labels are, one a line; empty: its own labels.csv |
| `tasks` | kind, label and classes that each folder is registered for, a JSON list a line; none: any |
| `policy` | file that says what a coordinator may ask for; none: everything |
| `secrets` | folder with this site's part of secure aggregation; none: its node stands before it |
| `device` | `auto`, `cpu` or `cuda` |
| `threads` | CPU threads for computing; 0: all cores |
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from client.dataset import Hospital, join, open_hospital
from client.tables import offers
from common.config import from_json
from common.errors import DataError
from common.initialise import learner_of_algorithm, parameters_of
from common.learner import Learner, device_of
from common.sections import Task

NodeConfig = Mapping[str, str | int | float | bool]
"""The keys above, as Flower hands them to a ClientApp."""


@dataclass(frozen=True)
class Node:
    """A node's own configuration."""

    site: str
    folders: tuple[Path, ...]
    states: tuple[Path | None, ...]
    labels: tuple[Path | None, ...]
    tasks: tuple[tuple[str, ...], ...]
    policy_file: Path | None
    secrets: Path | None
    device: str
    threads: int

    @property
    def own_state(self) -> Path:
        """Where the node itself keeps things: beside its first folder's secret."""
        return self.states[0] or self.folders[0] / ".zamenis"

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> Node:
        """Return the node that Flower's node configuration describes."""
        folders = tuple(Path(folder) for folder in str(node_config["hospital"]).splitlines())
        return cls(
            site=str(node_config["site"]),
            folders=folders,
            states=_beside(folders, node_config.get("state", "")),
            labels=_beside(folders, node_config.get("labels", "")),
            tasks=tuple(tuple(json.loads(one)) for one in str(node_config.get("tasks", "")).splitlines()),
            policy_file=Path(str(node_config["policy"])) if "policy" in node_config else None,
            secrets=Path(str(node_config["secrets"])) if "secrets" in node_config else None,
            device=str(node_config.get("device", "auto")),
            threads=int(str(node_config.get("threads", 0))),
        )


def _registered(node: Node, place: int, task: Task) -> bool:
    """Return whether a folder is registered for this label and these classes, and may be asked for them."""
    if place >= len(node.tasks):
        return True
    kind, label, *classes = node.tasks[place]
    fits = list(task.classes) == classes if kind == "segmentation" else set(task.classes) <= set(classes)
    return (task.kind, task.label) == (kind, label) and fits


def _beside(folders: tuple[Path, ...], lines: object) -> tuple[Path | None, ...]:
    """Return one path for each folder; a line that is missing or empty is none."""
    paths = [Path(line) if line else None for line in str(lines).split("\n")]
    return tuple(paths + [None] * len(folders))[: len(folders)]


def prepare(node: Node) -> None:
    """Give this process the node's number of threads; more than cores would slow everything tenfold."""
    threads = node.threads or len(os.sched_getaffinity(0))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


MOST_OPEN = 2
"""Hospitals of one node that are open at once: a coordinator's configurations may not fill its memory."""


def hospital_of(node: Node, config_json: str) -> Hospital:
    """Return the node's hospital, which stays open for the next messages with this configuration."""
    return opener(node)(config_json)


@lru_cache(maxsize=256)
def opener(node: Node) -> Callable[[str], Hospital]:
    """Return what opens a node's hospital for a configuration, and keeps those opened last."""
    return lru_cache(maxsize=MOST_OPEN)(partial(_open, node))


def _open(node: Node, config_json: str) -> Hospital:
    """Open the node's hospital: one folder's images stay memory-mapped, several folders are copied."""
    config = from_json(config_json)
    places = zip(node.folders, node.states, node.labels, strict=True)
    parts = [
        open_hospital(folder, config.data, config.task, state=state, labels=labels)
        for place, (folder, state, labels) in enumerate(places)
        if _registered(node, place, config.task)
        and (len(node.folders) == 1 or offers(folder, labels, config.task.columns))
    ]
    if not parts:
        raise DataError(
            f"no folder is registered for the label {config.task.label} with these classes; register one "
            "for them."
        )
    return replace(parts[0], name=node.site) if len(parts) == 1 else join(node.site, parts)


@lru_cache(maxsize=16)
def learner_of(
    node_device: str, input_shape: tuple[int, ...], config_json: str, algorithm: str, fresh_head: int
) -> Learner:
    """Return an algorithm's network for such inputs (see `learner_of_algorithm`), built once per process."""
    device = device_of(node_device)
    return learner_of_algorithm(from_json(config_json), algorithm, input_shape, device, fresh_head)


@lru_cache(maxsize=64)
def size_of(input_shape: tuple[int, ...], config_json: str, algorithm: str) -> int:
    """Return how many parameters an algorithm's network would have, before it is built."""
    return parameters_of(from_json(config_json), algorithm, input_shape)
