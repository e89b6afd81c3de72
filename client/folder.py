"""One folder of a hospital's, read: which rows can be used, and the tensors of those that are.

A folder holds DICOM files with labels.csv, or table.csv with schema.toml (see docs/data.md). What is used of
it is decided between the two steps, over all folders of a task (`client.dataset`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.cache import Cache
from client.cells import as_path
from client.image_child import image_reader
from client.journal import BETWEEN
from client.labels import ONE_BY_ONE, label_file, read_labels
from client.masks import Masks
from client.preflight import Quarantined, Reason, find_files, quarantine_of, write_quarantine
from client.remarks import about_table
from client.rows import Row
from client.series import EVERY_SERIES, Series, images_toml, read_series
from client.split import SiteKeys, divide, fraction, keyed_hash, open_keys
from client.survey import Survey
from client.tables import Table, read_table
from client.targets import Target, remedy_of, stacked, target_of
from common.errors import DataError
from common.features import Features
from common.sections import Data, Task

Progress = Callable[[int, int], None]
"""Told how many files are done, of how many."""
Places = NDArray[np.intp]
"""Rows by their place among those that could be used."""


@dataclass(frozen=True)
class Source:
    """Where a folder's data are, and what is the hospital's own about them."""

    folder: Path
    state: Path
    """Its secret, the cached tensors and quarantine.csv."""
    labels: Path | None = None
    """The CSV of an image folder's labels where it is not labels.csv there."""
    share: float = 0.5
    """Share of its patients to learn from."""


def state_of(folder: Path, state: Path | None = None) -> Path:
    """Return where what is the hospital's own about a folder lies: where it says, else in the folder."""
    return (state or folder / ".zamenis").resolve()


def stamp(source: Source) -> str:
    """Return what changes whenever a file of a folder does: names, sizes and times, hashed."""
    files = [(one.relative, one.size, one.mtime_ns) for one in find_files(source.folder, source.state)]
    sheet = source.labels or source.folder / "labels.csv"
    described = [one.stat() for one in (sheet, images_toml(sheet)) if one.is_file()]
    told = [files, [(found.st_size, found.st_mtime_ns) for found in described]]
    return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Tensors:
    """The rows that are used, in the order that was asked for."""

    inputs: Tensor
    labels: Tensor
    measured: Tensor | None
    """Numeric columns as they are, where the federation standardises them."""


@dataclass(frozen=True)
class Reading:
    """What can be used of a folder, in a lasting order."""

    rows: tuple[Row, ...]
    people: tuple[str, ...]
    """By what each row's patient is numbered: a name that sorts the same whenever the folder is read."""
    refused: Mapping[str, int]
    remarks: tuple[str, ...]
    """For the hospital itself: what is doubtful about it, in words."""
    secret: bytes
    """Keys what is told of the folder without telling it."""
    load: Callable[[Places, int], Tensors]
    """Takes the rows to use and how many of them, the first, are learned from."""
    features: Features | None = None
    """What a table's features are; None: it holds images."""


def read_folder(
    source: Source, data: Data, task: Task, *, caches: ExitStack, progress: Progress | None = None
) -> Reading:
    """Return what can be used of a folder, reading only the files that are new or changed since last time.

    `caches` is to stay open until the reading's tensors are loaded. Raises DataError where the folder cannot
    be used at all.
    """
    folder = source.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Name the hospital's folder.")
    if label_file(folder, source.labels) == folder / "table.csv":
        return _table(source, data, task)
    return _images(source, data, task, caches, progress)


def _images(source: Source, data: Data, task: Task, caches: ExitStack, progress: Progress | None) -> Reading:
    folder, state = source.folder, source.state
    described = source.labels or folder / "labels.csv"
    labels, series = read_labels(described, task), read_series(described)
    keys = open_keys(state)
    size = data.image_size
    cache = caches.enter_context(_cache(state, (data.channels, size, size), keys, series=series))
    files, masks = find_files(folder, state), None
    if task.kind == "segmentation":
        named = {as_path(cells[0]) for cells, _ in labels.rows.values()}
        files = [file for file in files if as_path(file.relative) not in named]
        kept = caches.enter_context(_cache(state, (1, size, size), keys, f"masks-{len(task.classes)}"))
        one_by_one = labels.key in ONE_BY_ONE
        masks = Masks(folder, kept, keys, task.classes, size, one_by_one=one_by_one)
    images = caches.enter_context(image_reader())
    found = Survey(cache, images, keys, labels, data, task, series, masks)
    due = time.monotonic() + BETWEEN
    for _ in chain(found.visit(files), found.settle()):
        if time.monotonic() > due:
            write_quarantine(state, found.quarantined)
            due = time.monotonic() + BETWEEN
        if progress:
            progress(found.decided, len(files))
    write_quarantine(state, found.quarantined)
    refused = Counter(line.reason for line in found.quarantined)
    if not found.accepted:
        raise DataError(f"{folder}: {found.why_nothing(quarantine_of(state))}")
    return _surveyed(found, refused, source.share)


def _cache(
    state: Path, shape: tuple[int, int, int], keys: SiteKeys, kind: str = "", series: Series = EVERY_SERIES
) -> Cache:
    """Return the cache of images or masks; another choice of series judges every header anew."""
    name = f"{kind}x{shape[1]}x{shape[2]}" if kind else "x".join(map(str, shape))
    choice = "" if series == EVERY_SERIES else f" {series.model_dump_json()}"
    return Cache(state / "cache" / name, shape, keyed_hash(keys.patient, f"cache{choice}"))


def _surveyed(found: Survey, refused: Mapping[str, int], share: float) -> Reading:
    """Return what a survey accepted."""
    names = sorted(found.accepted)
    known, accepted = [found.known[name] for name in names], [found.accepted[name] for name in names]
    learned = divide(
        [one.patient for one in known],
        [one.fraction for one in known],
        [one.side for one in accepted],
        share=share,
    )
    targets = [one.target for one in accepted]
    rows = tuple(
        Row(
            name=one.SOPInstanceUID or name,
            patient=one.patient,
            content=one.content,
            target=said.digest,
            stratum=_stratum(said.target, found.task),
            learned=bool(side),
            folder=keyed_hash(found.keys.split, "folder"),
        )
        for name, one, said, side in zip(names, known, accepted, learned, strict=True)
    )

    def load(places: Places, cut: int) -> Tensors:
        order = [names[place] for place in places]
        inputs = found.arrange(order)
        labels = (
            found.masks.arrange(order) if found.masks else stacked([targets[at] for at in places], found.task)
        )
        return Tensors(inputs, labels, None)

    people = tuple(one.patient for one in known)
    return Reading(rows, people, refused, tuple(found.remarks()), found.keys.digest, load)


def _table(source: Source, data: Data, task: Task) -> Reading:
    folder, keys = source.folder, open_keys(source.state)
    table = read_table(folder, task)
    if task.kind == "segmentation":
        raise DataError(f"{folder}: is a table, and segmentation needs images with masks. Leave it out.")
    targets = [target_of(cells, task) for cells in table.labels]
    quarantined = [
        Quarantined(f"table.csv line {line}", target, remedy_of(target, cells, task))
        for line, target, cells in zip(table.sheet.lines, targets, table.labels, strict=True)
        if isinstance(target, Reason)
    ]
    write_quarantine(source.state, quarantined)
    refused = Counter(line.reason for line in quarantined)
    usable = np.array([row for row, target in enumerate(targets) if not isinstance(target, Reason)], int)
    if not len(usable):
        wanted = f"one of {', '.join(task.classes)}" if task.kind == "classification" else "usable"
        raise DataError(
            f"{folder}: no row's {' or '.join(task.columns)} is {wanted}. Mend the labels; "
            f"{quarantine_of(source.state)} tells each remedy."
        )
    people = tuple(table.patients[row] or f"line {table.sheet.lines[row]}" for row in usable)
    drawn = [fraction(keys.split, patient) for patient in people]
    learned = divide(people, drawn, [table.sides[row] for row in usable], share=source.share)
    named = _names(table, keys)
    names = [named[row] for row in usable]
    rows = tuple(
        Row(
            name=name,
            patient=keyed_hash(keys.patient, table.patients[row]) if table.patients[row] else name,
            content="",  # it is in the name
            target=keyed_hash(keys.file, f"label {json.dumps(table.labels[row])}"),
            stratum=_stratum(targets[row], task),
            learned=bool(side),
            folder=keyed_hash(keys.split, "folder"),
        )
        for name, row, side in zip(names, usable, learned, strict=True)
    )
    federated = data.standardise == "federation"

    def load(places: Places, cut: int) -> Tensors:
        chosen = usable[places]
        learnable = np.zeros(len(targets), bool)
        learnable[chosen[:cut]] = True
        inputs = torch.from_numpy(table.features(learnable)[chosen])
        measured = torch.from_numpy(table.measured()[chosen]) if federated else None
        return Tensors(inputs, stacked([targets[row] for row in chosen], task), measured)

    told, features = tuple(about_table(table, task, usable)), table.schema.features
    return Reading(rows, people, refused, told, keys.digest, load, features)


def _names(table: Table, keys: SiteKeys) -> list[str]:
    """Return a name for each line by its patient and everything that it holds; equal lines are counted."""
    seen: Counter[str] = Counter()
    names = []
    for patient, content in zip(table.patients, table.contents, strict=True):
        told = f"line {json.dumps(patient)} {content}"
        seen[told] += 1
        names.append(keyed_hash(keys.file, f"{told} {seen[told]}"))
    return names


def _stratum(target: Target, task: Task) -> int:
    return int(target) if task.kind == "classification" else 0  # type: ignore[arg-type]
