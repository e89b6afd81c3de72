"""A hospital's cases: its folders in, two sets of tensors out, split by patient.

Which rows they are is settled before a message comes (`client.rows`): a message chooses among whole groups
of them, and a row that is not as it was registered stops every message.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from client.folder import Progress, Reading, Source, Tensors, read_folder, state_of
from client.rows import Record, Row
from client.targets import counted
from common import wire
from common.cases import Cases, concatenate
from common.errors import DataError
from common.features import Features
from common.sections import Data, Task
from common.seeds import Draws


@dataclass(frozen=True)
class Census:
    """What a hospital has, exactly: for the hospital itself."""

    accepted: int
    """Cases: images, or rows."""
    refused: Mapping[str, int]
    """Files or rows left out, by reason."""
    patients: int
    per_class: Mapping[str, int]
    """Cases of each class of the run, or with each finding; empty where labels are neither."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What bounds a hospital's answers."""

    floor: int = 1
    """Patients that a group of rows has at least."""
    least: int = 1
    """Patients below which a count is not told."""
    record: Record | None = None
    """Which rows are registered; None: those that are there now."""


@dataclass(frozen=True)
class Hospital:
    """One hospital: the cases to learn from, and other patients' cases to test on."""

    name: str
    adaptation: Cases
    test: Cases
    census: Census
    secret: bytes = field(repr=False)
    """Keys what is told of the cases without telling them; the hospital's own."""
    measured: Hospital | None = None
    """The same cases with their numeric columns alone, float64 and NaN where not measured, in place of
    features; where the federation standardises these (`standardise` in [data])."""
    groups: tuple[Int[Tensor, "learned"], Int[Tensor, "tested"]] | None = None
    """The group of each case of both sides, used as a whole or not at all; None: each case by itself."""
    columns_learned: Float64[Tensor, "learned column"] | None = None
    """Numeric columns as `measured` has them, of all registered cases to learn from, whatever is asked."""
    least: int = 1
    """Patients below which a count is not told, and a class counts as not there."""
    told: wire.Census | None = None
    """What leaves of its counts; the same whatever is asked."""
    features: Features | None = None
    """What a table's features are; None: cases are images."""
    parts: tuple[bytes, ...] = field(default=(), repr=False)
    """The folders' own secrets."""
    digest: str = ""
    """A keyed digest of the registered rows and their sides: another one means that results may differ."""

    @property
    def columns(self) -> int:
        """How many numeric columns the federation standardises; they are the first features."""
        return self.measured.adaptation.inputs.shape[1] if self.measured else 0

    @property
    def draws(self) -> Draws:
        """What draws over its patients come from: without its secret nobody can choose or foretell them."""
        return Draws(self.secret)

    @cached_property
    def everyone(self) -> Cases:
        """Both sides together, for a meta-training that never tests at this hospital."""
        return concatenate([self.adaptation, self.test])

    @cached_property
    def known(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Patients of each class to learn from and to test on, as far as they are told: 0 below `least`.

        Those in groups of that class alone: so many are there whichever classes are asked for. Whether a
        message is answered may depend on these, and on no other count.
        """
        sides = (self.adaptation, self.test)
        counts = [_pure(cases, groups) for cases, groups in zip(sides, self._grouped, strict=True)]
        classes = max(len(one) for one in counts)
        told = [[count if count >= self.least else 0 for count in one] for one in counts]
        learned, tested = (tuple(one + [0] * (classes - len(one))) for one in told)
        return learned, tested

    def of_classes(self, places: Sequence[int]) -> Hospital:
        """Return the hospital with the groups whose cases are all of these classes, numbered by `places`.

        Of several findings those in `places`; then no case is left out.
        """
        if self.adaptation.labels.ndim == 2:
            sides = [replace(one, labels=one.labels[:, list(places)]) for one in (self.adaptation, self.test)]
            return replace(self, adaptation=sides[0], test=sides[1])
        pairs = zip((self.adaptation, self.test), self._grouped, strict=True)
        (adaptation, learned), (test, tested) = (_among(cases, groups, places) for cases, groups in pairs)
        measured = self.measured.of_classes(places) if self.measured else None
        return replace(self, adaptation=adaptation, test=test, measured=measured, groups=(learned, tested))

    @property
    def _grouped(self) -> tuple[Int[Tensor, "learned"], Int[Tensor, "tested"]]:
        return self.groups or (torch.arange(len(self.adaptation)), torch.arange(len(self.test)))


def open_hospital(
    folder: Path,
    data: Data,
    task: Task,
    *,
    state: Path | None = None,
    labels: Path | None = None,
    share: float = 0.5,
    progress: Progress | None = None,
) -> Hospital:
    """Return the hospital in `folder` with all that can be used of it now (see `open_folders`).

    `state` (by default `folder`/.zamenis) holds what belongs to the hospital alone; `labels` names the CSV of
    an image hospital's labels where it is not `folder`/labels.csv; `share` of the patients are learned from.
    """
    source = Source(folder.resolve(), state_of(folder, state), labels, share)
    return open_folders(folder.resolve().name, [source], data, task, Rules(), progress)


def open_folders(
    name: str,
    sources: Sequence[Source],
    data: Data,
    task: Task,
    rules: Rules,
    progress: Progress | None = None,
) -> Hospital:
    """Return a task's folders as one hospital; a patient in two of them is one where they share a key.

    Raises DataError where a folder cannot be used, or the rows are not those that were registered.
    """
    with ExitStack() as caches:
        readings = [read_folder(one, data, task, caches=caches, progress=progress) for one in sources]
        rows, named = rows_of(readings), named_of(task)
        record = rules.record
        if record is None:
            refused = refused_of(readings)
            record = Record().registered(named, rows, floor=rules.floor, answered=0, refused=refused)
            record.check_sides(named, rows, floor=rules.floor)
        chosen = record.select(named, rows, floor=rules.floor)
        notes = tuple(
            f"{source.folder.name}: {remark}" if len(sources) > 1 else remark
            for source, one in zip(sources, readings, strict=True)
            for remark in one.remarks
        )
        hospital = _joined(name, readings, chosen, record, task, notes)
    hospital = replace(hospital, least=rules.least, digest=_digest(hospital, rows, chosen, record))
    return replace(hospital, told=_told(hospital, task, record.uses[named].refused))


def named_of(task: Task) -> str:
    """Return the name of a task in a record of rows: what the label is, not which values are asked for."""
    columns = task.classes if task.kind == "multi-label" else ()
    return json.dumps([task.kind, task.label, *columns])


def rows_of(readings: Iterable[Reading]) -> list[Row]:
    """Return all rows of a task's folders. DataError: two folders name theirs by the same secret."""
    rows = [row for one in readings for row in one.rows]
    if len({row.name for row in rows}) < len(rows):
        raise DataError(
            "two folders hold the same images or rows under one secret; register each of them once."
        )
    return rows


def refused_of(readings: Iterable[Reading]) -> dict[str, int]:
    """Return how many files or lines are left out of a task's folders, by reason."""
    total: Counter[str] = Counter()
    for one in readings:
        total.update(one.refused)
    return dict(sorted(total.items()))


def _joined(
    name: str,
    readings: Sequence[Reading],
    chosen: Mapping[str, int],
    record: Record,
    task: Task,
    notes: tuple[str, ...],
) -> Hospital:
    """Return the chosen rows of all folders: each folder's in its order, those to learn from first."""
    numbers: dict[str, int] = {}
    parts, inner = [], []
    for reading in readings:
        used = [place for place, row in enumerate(reading.rows) if row.name in chosen]
        if not used:
            continue
        groups = np.array([chosen[reading.rows[place].name] for place in used])
        learned = np.array([record.groups[number].learned for number in groups.tolist()])
        order = np.argsort(~learned, kind="stable")
        places = np.array(used, dtype=np.intp)[order]
        tensors, cut = reading.load(places, int(learned.sum())), int(learned.sum())
        for _, patient in sorted({(reading.people[at], reading.rows[at].patient) for at in used}):
            numbers.setdefault(patient, len(numbers))
        patients = torch.tensor([numbers[reading.rows[at].patient] for at in places.tolist()])
        where = torch.from_numpy(groups[order])
        parts.append(_sides(tensors.inputs, tensors, patients, where, cut))
        if tensors.measured is not None:
            inner.append(_sides(tensors.measured, tensors, patients, where, cut))
    census = _census(readings, parts, task, notes)
    secrets = [one.secret for one in readings]
    secret = secrets[0] if len(secrets) == 1 else hashlib.sha256(b"".join(secrets)).digest()
    measured = Hospital(name, *_concatenated(inner), census, secret) if inner else None
    hospital = Hospital(name, *_concatenated(parts), census, secret, measured, _groups(parts))
    hospital = replace(hospital, parts=tuple(secrets), features=_alike(readings))
    if measured:
        measured = replace(measured, groups=hospital.groups)
        return replace(hospital, measured=measured, columns_learned=measured.adaptation.inputs)
    return hospital


def _alike(readings: Sequence[Reading]) -> Features | None:
    """Return the features that all folders have. DataError: they differ."""
    first, *others = (one.features for one in readings)
    for other in others:
        if first and other and (words := first.difference(other, "one folder", "another")):
            raise DataError(f"{words}; write schema.toml alike in all folders of a label, or register one.")
    return first and first.with_codes_of([first, *others])


_Sides = tuple[tuple[Cases, Tensor], tuple[Cases, Tensor]]


def _sides(inputs: Tensor, tensors: Tensors, patients: Tensor, groups: Tensor, cut: int) -> _Sides:
    """Return a folder's cases and their groups, those to learn from and those to test on."""
    labels = tensors.labels
    return (
        (Cases(inputs[:cut], labels[:cut], patients[:cut]), groups[:cut]),
        (Cases(inputs[cut:], labels[cut:], patients[cut:]), groups[cut:]),
    )


def _concatenated(parts: Sequence[_Sides]) -> tuple[Cases, Cases]:
    if len(parts) == 1:
        return parts[0][0][0], parts[0][1][0]
    nobody_moves = [0] * len(parts)
    adaptation = concatenate([learned for (learned, _), _ in parts], nobody_moves)
    return adaptation, concatenate([tested for _, (tested, _) in parts], nobody_moves)


def _groups(parts: Sequence[_Sides]) -> tuple[Tensor, Tensor]:
    return torch.cat([here for (_, here), _ in parts]), torch.cat([here for _, (_, here) in parts])


def _census(
    readings: Sequence[Reading], parts: Sequence[_Sides], task: Task, notes: tuple[str, ...]
) -> Census:
    """Count the rows that are used, for the hospital itself."""
    adaptation, test = _concatenated(parts)
    for side, labels in (("test", test.labels), ("adaptation", adaptation.labels)):
        present = torch.unique(labels).tolist() if task.kind == "classification" else []
        if len(present) == 1:
            notes = (f"all {side} cases are of class {task.classes[present[0]]}", *notes)
    patients = torch.cat([adaptation.patients, test.patients])
    per_class = counted(torch.cat([adaptation.labels, test.labels]), task) if task.classes else {}
    return Census(len(patients), refused_of(readings), len(torch.unique(patients)), per_class, notes)


def _digest(hospital: Hospital, rows: Sequence[Row], chosen: Mapping[str, int], record: Record) -> str:
    """Return a keyed digest of the chosen rows: content, label, and side of the split."""
    total = hmac.new(hospital.secret, digestmod="sha256")
    for row in sorted(rows, key=lambda row: row.name):
        if row.name in chosen:
            side = record.groups[chosen[row.name]].learned
            total.update(json.dumps([row.name, row.patient, row.content, row.target, side]).encode())
    return total.hexdigest()


def _told(hospital: Hospital, task: Task, refused: Mapping[str, int]) -> wire.Census:
    """Return what leaves of a hospital's counts: of patients, none below the least, of registered classes.

    Findings and refusals are rounded down to multiples of the least: they change by single patients or files.
    """
    least, sides = hospital.least, (hospital.adaptation, hospital.test)

    def enough(count: int) -> int | None:
        return count if count >= least and count else None

    patients = [enough(len(torch.unique(one.patients))) for one in sides]
    per_class: dict[str, wire.Sides] = {}
    for place, name in enumerate(task.classes):
        if task.kind == "classification":
            known = [one[place] if place < len(one) else 0 for one in hospital.known]
        elif task.kind == "multi-label":
            having = [len(torch.unique(one.patients[one.labels[:, place] == 1])) for one in sides]
            known = [count // least * least for count in having]
        else:
            break
        per_class[name] = (enough(known[0]), enough(known[1]))
    rounded = {name: count // least * least for name, count in refused.items() if count >= least}
    return wire.Census(least, (patients[0], patients[1]), per_class, rounded)


def _pure(cases: Cases, groups: Int[Tensor, "case"]) -> list[int]:
    """Return how many patients of each class are in groups of that class alone."""
    strata = cases.strata
    if not len(strata):
        return []
    classes = int(strata.max()) + 1
    _, place = torch.unique(groups, return_inverse=True)
    first = torch.full((int(place.max()) + 1,), -1).scatter(0, place, strata)
    alien = torch.zeros(len(first), dtype=torch.bool)
    alien[place[first[place] != strata]] = True
    alone = ~alien[place]
    return [len(torch.unique(cases.patients[alone & (strata == label)])) for label in range(classes)]


def _among(
    cases: Cases, groups: Int[Tensor, "case"], places: Sequence[int]
) -> tuple[Cases, Int[Tensor, "chosen"]]:
    """Return the cases of groups of these classes alone, labelled by their place in `places`."""
    numbers = torch.full((max([*cases.labels.tolist(), *places], default=0) + 1,), -1)
    numbers[list(places)] = torch.arange(len(places))
    labels = numbers[cases.labels]
    kept = ~torch.isin(groups, groups[labels < 0])
    if kept.all():
        return replace(cases, labels=labels), groups
    return Cases(cases.inputs[kept], labels[kept], cases.patients[kept]), groups[kept]
