"""Registering a folder: read it once as a run would, and write down what it offers; nothing leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from client.dataset import Census, Progress, open_hospital
from client.home import Home, Registered
from client.tables import class_values
from common.errors import ConfigError, DataError
from common.sections import Data, Task, TaskName
from common.settings import validate

MOST_CLASSES = 50
"""More distinct labels than this are a measurement or a mistake, not classes."""


@dataclass(frozen=True)
class Registration:
    """What was registered, and what a first reading found."""

    registered: Registered
    census: Census


def register(
    home: Home,
    folder: Path,
    *,
    label: str,
    kind: TaskName = "classification",
    classes: Sequence[str] = (),
    labels: Path | None = None,
    state: Path | None = None,
    image_size: int = Data().image_size,
    progress: Progress | None = None,
) -> Registration:
    """Read `folder`, write its quarantine report, and add it to the node's data (or renew its entry).

    Without `state`, the folder's cache and secret lie where they did, or in the node's own folder: the
    data may be read-only. Without `classes`, a classification takes the label's own values, in order. Raises
    DataError where the folder cannot be used; then nothing is registered.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Name the folder with the hospital's data.")
    found = tuple(classes)
    if kind == "classification" and not found:
        found = _values(folder, labels, label)
    task = validate(Task, {"kind": kind, "label": label, "classes": found}, "register")
    private = state.expanduser().resolve() if state else _state_of(home, folder)
    data = Data(image_size=image_size)
    hospital = open_hospital(folder, data, task, state=private, labels=labels, progress=progress)
    entry = Registered(
        folder=str(folder),
        state=str(private),
        labels=str(labels.expanduser().resolve()) if labels else "",
        kind=kind,
        label=label,
        classes=found,
    )
    known = home.settings.data
    others = tuple(one for one in known if (one.folder, one.label) != (entry.folder, entry.label))
    _write(home, (*others, entry))
    return Registration(entry, hospital.census)


def census_of(entry: Registered) -> Census:
    """Return the counts of a registered folder as it is now."""
    labels = Path(entry.labels) if entry.labels else None
    return open_hospital(
        Path(entry.folder), Data(), entry.task, state=Path(entry.state), labels=labels
    ).census


def forget(home: Home, folder: Path) -> None:
    """Take a folder out of the node's data; its files stay as they are."""
    target = str(folder.expanduser().resolve())
    kept = tuple(one for one in home.settings.data if one.folder != target)
    if len(kept) == len(home.settings.data):
        raise ConfigError(f"{folder}: is not registered; zamenis-hospital data lists what is.")
    _write(home, kept)


def _values(folder: Path, labels: Path | None, label: str) -> tuple[str, ...]:
    """Return a label's own values as classes; raises DataError where they cannot be."""
    found = class_values(folder, labels, label)
    if not 2 <= len(found) <= MOST_CLASSES:
        raise DataError(
            f"{folder}: {label} has {len(found)} distinct values; 2 to {MOST_CLASSES} can be classes. "
            "Name another label, the classes with --classes, or another kind of task with --task."
        )
    return found


def _state_of(home: Home, folder: Path) -> Path:
    """Return where a folder's cache and secret lie: where they are already, else in the node's own folder.

    A folder keeps its secret, so that its patients stay split as they are.
    """
    known = {one.folder: one.state for one in home.settings.data}
    if str(folder) in known:
        return Path(known[str(folder)])
    own = folder / ".zamenis"
    if own.is_dir():
        return own
    return home.state / "data" / sha256(str(folder).encode()).hexdigest()[:16]


def _write(home: Home, data: tuple[Registered, ...]) -> None:
    home.with_settings(home.settings.model_copy(update={"data": data}))
