"""Registering folders: read them once as a run would, and settle which rows may be summed; nothing leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from client.cells import alike
from client.dataset import Census, Rules, named_of, open_folders, refused_of, rows_of
from client.folder import Progress, Source, read_folder
from client.home import Home, Registered
from client.labels import class_values
from client.policy import policy_of
from client.preflight import quarantine_of
from client.rows import Use
from client.split import share_patients
from common.errors import ConfigError, DataError, TooSmallError
from common.files import PRIVATE, locked, write_text
from common.sections import Data, Task, TaskName
from common.settings import validate

MOST_CLASSES = 50
"""More distinct labels than this are a measurement or a mistake, not classes."""


@dataclass(frozen=True)
class Registration:
    """What was registered, what a first reading found, and what of it is used."""

    registered: Registered
    census: Census
    use: Use
    """Of all folders with this label."""


Given = ParamSpec("Given")
Found = TypeVar("Found")


def _alone(
    change: Callable[Concatenate[Home, Given], Found],
) -> Callable[Concatenate[Home, Given], Found]:
    """Let one process at a time change a node's data, and each from what the last has written."""

    @wraps(change)
    def in_turn(home: Home, /, *given: Given.args, **named: Given.kwargs) -> Found:
        with locked(home.settings_file):
            return change(Home.load(home.directory), *given, **named)

    return in_turn


@_alone
def register(
    home: Home,
    folder: Path,
    *,
    label: str,
    kind: TaskName = "classification",
    classes: Sequence[str] = (),
    labels: Path | None = None,
    state: Path | None = None,
    share: float | None = None,
    image_size: int = Data().image_size,
    progress: Progress | None = None,
) -> Registration:
    """Read `folder`, write its quarantine report, and add it to the node's data (or renew its entry).

    Its rows are settled with those of the label's other folders (`client.rows`). Without `state`, the
    folder's cache and secret lie where they did, or in the node's own folder: the data may be read-only.
    Without `classes`, those of the label's other folders or of the entry that is renewed are taken, or else
    a classification's are the label's own values in order. Without `share`, that of the entry that is
    renewed, or one half. Raises DataError or ConfigError where the folder cannot be used; then nothing is
    registered.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        fault = "is a file" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {fault}. Name the folder with the hospital's data.")
    policy_of(home.policy)  # a damaged one ends this before a long reading
    known = [one for one in home.settings.data if (one.folder, one.label) != (str(folder), label)]
    beside = [one for one in known if (one.kind, one.label) == (kind, label)]
    before = next(
        (one for one in home.settings.data if (one.folder, one.label) == (str(folder), label)), None
    )
    same = (*beside, *([before] if before and before.kind == kind else ()))
    found = tuple(classes) or (same[0].classes if same else ())
    if kind == "classification" and not found:
        found = _values(folder, labels, label)
    task = validate(Task, {"kind": kind, "label": label, "classes": found}, "register")
    if beside and beside[0].classes != found:
        raise ConfigError(
            f"{beside[0].folder}: is registered for {label} with the classes {', '.join(beside[0].classes)}; "
            "all folders of a label have the same. Name those, or forget that folder first."
        )
    for one in gone(beside):
        raise DataError(
            f"{one}: is registered for {label} as well, and is not there. Mount it again, or "
            f"zamenis-hospital forget {one}."
        )
    private = state.expanduser().resolve() if state else _state_of(home, folder)
    for entry in known:
        if entry.state == str(private) and entry.folder != str(folder):
            raise ConfigError(f"--state {private}: is kept for {entry.folder}. Name another for {folder}.")
    entry = validate(
        Registered,
        {
            "folder": str(folder),
            "state": str(private),
            "labels": str(labels.expanduser().resolve()) if labels else "",
            "kind": kind,
            "label": label,
            "classes": found,
            "adaptation-share": (before.adaptation_share if before else 0.5) if share is None else share,
        },
        "register",
    )
    share_patients(home.book.path.parent, private)
    if before and named_of(before.task) != named_of(task):
        home.book.leave(named_of(before.task))
    data, source = Data(image_size=image_size), source_of(entry)
    with _quarantine_named(private):
        census = open_folders(folder.name, [source], data, task, Rules(), progress).census
        use = _settle(home, [*beside, entry], data)
    write_text(_census_file(entry), json.dumps(asdict(census), ensure_ascii=False), mode=PRIVATE)
    _write(home, (*known, entry))
    return Registration(entry, census, use)


@contextmanager
def _quarantine_named(state: Path) -> Iterator[None]:
    """Say where what was left out is told, where too few patients are left."""
    path = quarantine_of(state)
    try:
        yield
    except TooSmallError as error:
        if count := len(path.read_text(encoding="utf-8", errors="replace").splitlines()) - 1:
            raise TooSmallError(f"{error} Left out are {count}; {path} tells each remedy.") from error
        raise


def _settle(home: Home, entries: Sequence[Registered], data: Data) -> Use:
    """Settle which rows of a label's folders are used, and return that."""
    task = entries[0].task
    with ExitStack() as caches:
        readings = [read_folder(source_of(one), data, task, caches=caches) for one in entries]
        rows, floor = rows_of(readings), policy_of(home.policy).min_patients
        record = home.book.register(named_of(task), rows, floor=floor, refused=refused_of(readings))
    return record.uses[named_of(task)]


def gone(entries: Iterable[Registered]) -> list[str]:
    """Return which registered folders are not there: deleted, or not mounted."""
    return sorted({one.folder for one in entries if not Path(one.folder).is_dir()})


def source_of(entry: Registered) -> Source:
    """Return where a registered folder's data are."""
    labels = Path(entry.labels) if entry.labels else None
    return Source(Path(entry.folder), Path(entry.state), labels, entry.adaptation_share)


def census_of(entry: Registered) -> Census | None:
    """Return the counts of a registered folder as its last registration found them; None: none are kept."""
    try:
        return Census(**json.loads(_census_file(entry).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _census_file(entry: Registered) -> Path:
    """Return where a registration's counts are kept: beside what else is the hospital's own of the folder."""
    return Path(entry.state) / f"census-{sha256(named_of(entry.task).encode()).hexdigest()[:16]}.json"


@_alone
def forget(home: Home, folder: Path) -> list[str]:
    """Take a folder out of the node's data; its files stay as they are, and its rows in the record.

    What is left of its labels is settled anew; return why that cannot be, label by label.
    """
    target = str(folder.expanduser().resolve())
    kept = tuple(one for one in home.settings.data if one.folder != target)
    if len(kept) == len(home.settings.data):
        raise ConfigError(f"{folder}: is not registered; zamenis-hospital data lists what is.")
    gone = [one for one in home.settings.data if one.folder == target]
    for each in gone:
        home.book.leave(named_of(each.task))
    _write(home, kept)
    troubles = []
    for each in gone:
        left = [one for one in kept if (one.kind, one.label) == (each.kind, each.label)]
        try:
            if left:
                _settle(home, left, Data())
        except (DataError, ConfigError) as error:
            troubles.append(f"{each.label} is answered with nothing now: {error}")
    return troubles


def _values(folder: Path, labels: Path | None, label: str) -> tuple[str, ...]:
    """Return a label's own values as classes; raises DataError where they cannot be, or hardly are."""
    found = class_values(folder, labels, label)
    if not 2 <= len(found) <= MOST_CLASSES:
        raise DataError(
            f"{folder}: {label} has {len(found)} distinct values; 2 to {MOST_CLASSES} can be classes. "
            "Name another label, the classes with --classes, or another kind of task with --task."
        )
    first: dict[str, str] = {}
    for value in found:
        if (twin := first.setdefault(alike(value), value)) != value:
            raise DataError(
                f'{folder}: {label} says "{twin}" and "{value}", which differ by case or blanks alone. Write '
                "them alike, or name the classes with --classes; rows that say another are left out."
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
