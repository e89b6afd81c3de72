"""What a node knows of itself: its hospital's folders, and the learner it computes with.

Everything comes from the node's own configuration, never from the coordinator:

| key | meaning |
|---|---|
| `site` | the hospital's name in the federation |
| `hospital` | its folder, or several, one a line; a run uses those that have its label |
| `state` | where each folder's secret and cache are, one a line; empty: in the folder's own `.zamenis` |
| `labels` | where each folder's labels are, one a line; empty: its own labels.csv |
| `tasks` | kind, label and classes that each folder is registered for, a JSON list a line; none: any |
| `shares` | share of each folder's patients to learn from, one a line; empty: one half |
| `rows` | file that says which rows are registered; none: those that are there when they are first read |
| `policy` | file that says what a coordinator may ask for; none: everything |
| `secrets` | folder with this site's part of secure aggregation; none: its node stands before it |
| `predictions` | folder where a simulated site keeps its test cases' predictions; none: nothing is kept |
| `device` | `auto`, `cpu` or `cuda` |
| `threads` | CPU threads for computing; 0: all cores |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from client.book import Book
from client.dataset import Hospital, Rules, open_folders
from client.folder import Source, stamp, state_of
from client.labels import offers
from client.policy import policy_of
from common.config import from_json
from common.errors import DataError
from common.initialise import learner_of_algorithm, parameters_of
from common.learner import Learner, device_of
from common.machine import cores
from common.sections import Data, Task

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
    shares: tuple[float, ...]
    rows: Path | None
    policy_file: Path | None
    secrets: Path | None
    predictions: Path | None
    device: str
    threads: int

    @property
    def own_state(self) -> Path:
        """Where the node itself keeps things: beside its first folder's secret."""
        return self.own_states[0]

    @property
    def own_states(self) -> tuple[Path, ...]:
        """Where what is its own about each folder lies."""
        return tuple(state_of(*both) for both in zip(self.folders, self.states, strict=True))

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
            shares=tuple(
                float(line) if line else 0.5 for line in _lines(folders, node_config.get("shares", ""))
            ),
            rows=Path(str(node_config["rows"])) if "rows" in node_config else None,
            policy_file=Path(str(node_config["policy"])) if "policy" in node_config else None,
            secrets=Path(str(node_config["secrets"])) if "secrets" in node_config else None,
            predictions=Path(str(node_config["predictions"])) if "predictions" in node_config else None,
            device=str(node_config.get("device", "auto")),
            threads=int(str(node_config.get("threads", 0))),
        )


def _registered(node: Node, place: int, task: Task) -> Task | None:
    """Return the task that a folder is registered for, if it may be asked for this one."""
    if place >= len(node.tasks):
        return task
    kind, label, *classes = node.tasks[place]
    fits = list(task.classes) == classes if kind == "segmentation" else set(task.classes) <= set(classes)
    if (task.kind, task.label) != (kind, label) or not fits:
        return None
    return task.model_copy(update={"classes": tuple(classes)})


def _beside(folders: tuple[Path, ...], lines: object) -> tuple[Path | None, ...]:
    """Return one path for each folder; a line that is missing or empty is none."""
    return tuple(Path(line) if line else None for line in _lines(folders, lines))


def _lines(folders: tuple[Path, ...], lines: object) -> list[str]:
    """Return one line for each folder; what is missing is empty."""
    return (str(lines).split("\n") + [""] * len(folders))[: len(folders)]


def prepare(node: Node) -> None:
    """Give this process the node's number of threads; more than cores would slow everything tenfold."""
    threads = node.threads or cores()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def hospital_of(node: Node, config_json: str) -> Hospital:
    """Return the node's hospital as a run asks for it, which counts as answered in its edition of rows.

    It is opened once per process, and again where a file or the registration has changed. DataError: no
    folder is registered for the task, or a row is not as it was registered.
    """
    config = from_json(config_json)
    sources, task = _sources(node, config.task)
    policy, book = policy_of(node.policy_file), Book(node.rows) if node.rows else None
    record = book.load() if book else None
    asked = _Asked(
        data=config.data.model_copy(update={"hospitals": "", "adaptation_share": 0.5}),
        task=task,
        classes=config.task.classes,
        rules=Rules(policy.min_patients, policy.min_count),
        edition=record.edition if record else 0,
        files=tuple(stamp(one) for one in sources) if book else (),
    )
    hospital = opener(node)(asked)
    if book:
        book.answer(asked.edition)
    return hospital


@dataclass(frozen=True)
class _Asked:
    """What an open hospital depends on: what is asked, and what is there."""

    data: Data
    task: Task
    """As it is registered."""
    classes: tuple[str, ...]
    rules: Rules
    edition: int
    files: tuple[str, ...]


MOST_OPEN = 2
"""Hospitals of one node that are open at once: a coordinator's configurations may not fill its memory."""


@lru_cache(maxsize=256)
def opener(node: Node) -> Callable[[_Asked], Hospital]:
    """Return what opens a node's hospital as it is asked for, and keeps those opened last."""
    return lru_cache(maxsize=MOST_OPEN)(partial(_open, node))


def _open(node: Node, asked: _Asked) -> Hospital:
    """Open the node's hospital: one folder's images stay memory-mapped, several folders are copied."""
    sources, task = _sources(node, asked.task)
    rules = asked.rules
    if node.rows:
        rules = replace(rules, record=Book(node.rows).load(edition=asked.edition))
    hospital = open_folders(node.site, sources, asked.data, task, rules)
    if asked.classes == task.classes:
        return hospital
    return hospital.of_classes([task.classes.index(name) for name in asked.classes])


def _sources(node: Node, task: Task) -> tuple[list[Source], Task]:
    """Return the folders that may be asked for a task, and the task that they are registered for."""
    sources, registered = [], task
    for place, (folder, state, labels) in enumerate(zip(node.folders, node.states, node.labels, strict=True)):
        found = _registered(node, place, task)
        if found and (len(node.folders) == 1 or offers(folder, labels, found.columns)):
            sources.append(Source(folder.resolve(), state_of(folder, state), labels, node.shares[place]))
            registered = found
    if not sources:
        raise DataError(
            f"no folder is registered for the label {task.label} with these classes; register one for them."
        )
    return sources, registered


MOST_LEARNERS, MOST_PARAMETERS = 16, 2**27
"""Networks that are kept, and theirs together, 8 bytes each: configurations come without end."""
_learners: dict[tuple[object, ...], Learner] = {}
"""What was used last is last."""


def learner_of(
    node_device: str, input_shape: tuple[int, ...], config_json: str, algorithm: str, fresh_head: int
) -> Learner:
    """Return an algorithm's network for such inputs (see `learner_of_algorithm`).

    It is built once per process, and again where others took its place: the last ones are kept, as many as
    both bounds allow, and the very last.
    """
    asked = (node_device, input_shape, config_json, algorithm, fresh_head)
    found = _learners.pop(asked, None) or learner_of_algorithm(
        from_json(config_json), algorithm, input_shape, device_of(node_device), fresh_head
    )
    _learners[asked] = found
    while len(_learners) > 1 and _too_many():
        del _learners[next(iter(_learners))]
    return found


def _too_many() -> bool:
    parameters = sum(one.parameters for one in _learners.values())
    return len(_learners) > MOST_LEARNERS or parameters > MOST_PARAMETERS


@lru_cache(maxsize=64)
def size_of(input_shape: tuple[int, ...], config_json: str, algorithm: str) -> int:
    """Return how many parameters an algorithm's network would have, before it is built."""
    return parameters_of(from_json(config_json), algorithm, input_shape)
