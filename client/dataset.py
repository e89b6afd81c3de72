"""A hospital's cases: a folder in, two sets of tensors out, split by patient.

A hospital is a folder of DICOM files with labels.csv, or table.csv with schema.toml (see docs/data.md).
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.cache import Cache
from client.masks import Masks
from client.preflight import REMEDIES, Quarantined, Reason, find_files, write_quarantine
from client.split import divide, fraction, open_keys
from client.survey import Survey
from client.tables import ONE_BY_ONE, read_labels, read_table
from client.targets import counted, stacked, target_of
from common.cases import Cases, concatenate
from common.errors import DataError
from common.sections import Data, Task
from common.seeds import Draws

Progress = Callable[[int, int], None]
"""Told how many files are done, of how many."""


@dataclass(frozen=True)
class Census:
    """What a hospital has, as counts and nothing else: this may leave the building."""

    accepted: int
    """Cases: images, or rows."""
    refused: Mapping[str, int]
    """Files or rows left out, by reason."""
    patients: int
    per_class: Mapping[str, int]
    """Cases of each class of the run, or with each finding; empty where labels are neither."""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the census as plain JSON values."""
        return asdict(self) | {"warnings": list(self.warnings)}


@dataclass(frozen=True)
class Hospital:
    """One hospital: the cases to learn from, other patients' cases to test on, and their counts."""

    name: str
    adaptation: Cases
    test: Cases
    census: Census
    secret: bytes = field(repr=False)
    """Keys what is told of the cases without telling them; the hospital's own."""
    measured: Hospital | None = None
    """The same cases with their numeric columns alone, float64 and NaN where not measured, in place of
    features; where the federation standardises these (`standardise` in [data])."""

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
    def digest(self) -> str:
        """A keyed digest of every case and of the split: another one means that results may differ."""
        total = hmac.new(self.secret, digestmod="sha256")
        for side in (self.adaptation, self.test):
            for part in (side.inputs, side.labels, side.patients):
                total.update(part.contiguous().numpy().data)
            total.update(str(len(side)).encode())
        if self.measured:
            total.update(self.measured.digest.encode())
        return total.hexdigest()


def open_hospital(
    folder: Path,
    data: Data,
    task: Task,
    *,
    state: Path | None = None,
    labels: Path | None = None,
    progress: Progress | None = None,
) -> Hospital:
    """Return the hospital in `folder`, reading only the files that are new or changed since last time.

    `labels` names the CSV of an image hospital's labels where it is not `folder`/labels.csv.

    `state` (by default `folder`/.zamenis) holds what belongs to the hospital alone: its secret, the
    cached tensors and quarantine.csv. Raises DataError where the folder cannot be used at all.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Name the hospital's folder.")
    folder = folder.resolve()
    state = (state or folder / ".zamenis").resolve()
    if labels or (folder / "labels.csv").is_file():
        return _open_images(folder, labels or folder / "labels.csv", data, task, state, progress)
    if (folder / "schema.toml").is_file():
        return _open_table(folder, data, task, state)
    raise DataError(f"{folder}: has neither labels.csv (images) nor schema.toml (a table); see docs/data.md.")


def join(name: str, parts: Sequence[Hospital]) -> Hospital:
    """Return several folders as one hospital, copied into memory; their patients stay different people."""
    offsets = np.cumsum([0, *(part.census.patients for part in parts)]).tolist()
    measured = [part.measured for part in parts if part.measured]
    return Hospital(
        name,
        concatenate([part.adaptation for part in parts], offsets[:-1]),
        concatenate([part.test for part in parts], offsets[:-1]),
        Census(
            accepted=sum(part.census.accepted for part in parts),
            refused=_summed([part.census.refused for part in parts]),
            patients=offsets[-1],
            per_class=_summed([part.census.per_class for part in parts]),
            warnings=tuple(f"{part.name}: {warning}" for part in parts for warning in part.census.warnings),
        ),
        hashlib.sha256(b"".join(part.secret for part in parts)).digest(),
        join(name, measured) if measured else None,
    )


def _open_images(
    folder: Path, sheet: Path, data: Data, task: Task, state: Path, progress: Progress | None
) -> Hospital:
    labels = read_labels(sheet, task)
    keys = open_keys(state)
    shape = (data.channels, data.image_size, data.image_size)
    with ExitStack() as open_caches:
        cache = open_caches.enter_context(_cache(state, "x".join(map(str, shape)), shape))
        files, masks = find_files(folder, state), None
        if task.kind == "segmentation":
            named = {cells[0].removeprefix("./") for cells, _ in labels.rows.values()}
            files = [file for file in files if file.relative not in named]
            size = data.image_size
            kept = _cache(state, f"masks-{len(task.classes)}x{size}x{size}", (1, size, size))
            masks = Masks(
                folder,
                open_caches.enter_context(kept),
                keys,
                task.classes,
                size,
                one_by_one=labels.key in ONE_BY_ONE,
            )
        found = Survey(cache, keys, labels, data, task, masks)
        for done, file in enumerate(files, start=1):
            found.visit(file)
            if progress:
                progress(done, len(files))
        write_quarantine(state, found.quarantined)
        return _divided(folder, found, data, task)


def _cache(state: Path, name: str, shape: tuple[int, int, int]) -> Cache:
    return Cache(state / "cache" / name, shape)


def _divided(folder: Path, found: Survey, data: Data, task: Task) -> Hospital:
    """Return what a survey accepted, split by patient and in a lasting order."""
    labels = found.labels
    refused = Counter(line.reason for line in found.quarantined)
    if not found.accepted:
        raise DataError(_nothing_accepted(folder, refused, len(labels.rows), labels.key))
    names = sorted(found.accepted)
    known = [found.known[name] for name in names]
    adaptation = divide(
        [one.patient for one in known],
        [one.fraction for one in known],
        [found.accepted[name].side for name in names],
        share=data.adaptation_share,
    )
    order = [names[row] for row in _adaptation_first(adaptation)]
    inputs = found.arrange(order)
    cases = Cases(
        inputs,
        found.labelled(order),
        _numbered([found.known[name].patient for name in order]),
    )
    unmatched = f"{found.unmatched} of {len(labels.rows)} rows in labels.csv match no image"
    warnings = (unmatched,) if found.unmatched else ()
    return _hospital(folder.name, cases, adaptation, task, found.keys.digest, refused, warnings)


def _open_table(folder: Path, data: Data, task: Task, state: Path) -> Hospital:
    keys = open_keys(state)
    table = read_table(folder, task)
    if task.kind == "segmentation":
        raise DataError(f"{folder}: is a table, and segmentation needs images with masks. Leave it out.")
    targets = [target_of(cells, task) for cells in table.labels]
    quarantined = [
        Quarantined(f"table.csv line {line}", target, REMEDIES[target])
        for line, target in zip(table.sheet.lines, targets, strict=True)
        if isinstance(target, Reason)
    ]
    write_quarantine(state, quarantined)
    refused = Counter(line.reason for line in quarantined)
    rows = np.array([row for row, target in enumerate(targets) if not isinstance(target, Reason)], int)
    if not len(rows):
        wanted = f"one of {', '.join(task.classes)}" if task.kind == "classification" else "usable"
        raise DataError(f"{folder}: no row's {' or '.join(task.columns)} is {wanted}. Mend the labels.")
    patients = [table.patients[row] or f"line {table.sheet.lines[row]}" for row in rows]
    drawn = [fraction(keys.split, patient) for patient in patients]
    adaptation = divide(patients, drawn, [table.sides[row] for row in rows], share=data.adaptation_share)
    learned = np.zeros(len(targets), bool)
    learned[rows[adaptation]] = True
    order = _adaptation_first(adaptation)
    cases = Cases(
        torch.from_numpy(table.features(learned)[rows[order]]),
        stacked([targets[row] for row in rows[order]], task),
        _numbered([patients[row] for row in order]),
    )
    hospital = _hospital(folder.name, cases, adaptation, task, keys.digest, refused, ())
    if data.standardise == "site":
        return hospital
    columns = replace(cases, inputs=torch.from_numpy(table.measured()[rows[order]]))
    measured = _hospital(folder.name, columns, adaptation, task, keys.digest, refused, ())
    return replace(hospital, measured=measured)


def _hospital(
    name: str,
    cases: Cases,
    adaptation: NDArray[np.bool_],
    task: Task,
    secret: bytes,
    refused: Mapping[str, int],
    warnings: tuple[str, ...],
) -> Hospital:
    """Cut `cases`, which come adaptation first, in two, and count them."""
    per_class = counted(cases.labels, task)
    cut = int(adaptation.sum())
    for side, labels in (("test", cases.labels[cut:]), ("adaptation", cases.labels[:cut])):
        present = torch.unique(labels).tolist() if task.kind == "classification" else []
        if len(present) == 1:
            warnings = (f"all {side} cases are of class {task.classes[present[0]]}", *warnings)
    patients = int(cases.patients.max()) + 1
    return Hospital(
        name,
        Cases(cases.inputs[:cut], cases.labels[:cut], cases.patients[:cut]),
        Cases(cases.inputs[cut:], cases.labels[cut:], cases.patients[cut:]),
        Census(len(cases), dict(sorted(refused.items())), patients, per_class, warnings),
        secret,
    )


def _adaptation_first(adaptation: NDArray[np.bool_]) -> NDArray[np.intp]:
    return np.argsort(~adaptation, kind="stable")


def _numbered(patients: Sequence[str]) -> torch.Tensor:
    """Return patients as numbers from 0 upwards."""
    return torch.from_numpy(np.unique(np.array(patients), return_inverse=True)[1].astype(np.int64))


def _nothing_accepted(folder: Path, refused: Mapping[str, int], rows: int, key: str) -> str:
    """Return why no file of an image hospital could be used, in counts."""
    if not refused:
        return f"{folder}: labels.csv has {rows} rows, but the folder holds no image. Add DICOM files."
    counts = ", ".join(f"{count} {reason}" for reason, count in refused.items())
    by_labels = {Reason.MISSING_LABEL, Reason.UNKNOWN_CLASS}
    images = sum(count for reason, count in refused.items() if reason in by_labels)
    if images == refused.get(Reason.MISSING_LABEL) != 0:
        return (
            f"{folder}: none of {images} images has a label, and none of {rows} rows in labels.csv an image "
            f"({counts}). Check that the {key} column holds the images' own {key}."
        )
    return f"{folder}: no file can be used ({counts}). Its state folder's quarantine.csv tells each remedy."


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(total)
