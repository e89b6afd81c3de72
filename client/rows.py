"""Which rows are ever summed: groups of at least a floor of patients, each used as a whole or not at all.

A coordinator that gets two sums over rows which differ by one patient has that patient's own. So a hospital
cuts its accepted rows into groups when it registers them, and every answer is over a union of whole groups.
Rows never change their group, and a group never changes its rows: two unions differ by whole groups, that
is by nobody or by a floor of patients, however the data grew or shrank between them.

A node has one record for all that it has registered; tasks over the same rows (another label) share its
groups. A row goes by a keyed name, a patient by another: nothing in a record tells who it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from common.errors import DataError, TooSmallError

Key = TypeVar("Key", int, str)
AGAIN = "Run zamenis-hospital register for this folder, which takes the rows as they are now."


@dataclass(frozen=True)
class Row:
    """A row that could be accepted: an image, or a line of a table. All texts are keyed hashes."""

    name: str
    patient: str
    content: str
    """Of what it holds besides its label."""
    target: str
    """Of what its label says."""
    stratum: int
    """Its class; 0 where labels are no classes."""
    learned: bool
    """On which side of the split its patient belongs, unless a group has settled that."""
    folder: str = ""
    """Which of a task's folders it is in."""


@dataclass(frozen=True)
class Group:
    """Rows that are used together or not at all, all of patients on one side of the split."""

    learned: bool
    cut: int
    """The edition in which it was made."""
    contents: Mapping[str, str]
    """The rows by name, each with its content."""
    patients: frozenset[str]


@dataclass(frozen=True)
class Use:
    """What one task uses of a record."""

    groups: tuple[int, ...] = ()
    """Numbers of the groups that every message of it is about."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """What each row's label said when the task first used it."""
    waiting: int = 0
    """Patients with rows that are in none of its groups yet: too few to be one."""
    silent: int = 0
    """Patients of its groups that are not whole any more, or not whole in this task."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Files or lines that were left out when it was registered, by reason."""


@dataclass(frozen=True)
class Record:
    """All groups that a node has made, and which of them each task uses."""

    edition: int = 0
    """Raised by every registration."""
    groups: Mapping[int, Group] = field(default_factory=dict)
    uses: Mapping[str, Use] = field(default_factory=dict)

    def registered(
        self,
        task: str,
        rows: Sequence[Row],
        *,
        floor: int,
        answered: int,
        refused: Mapping[str, int] | None = None,
    ) -> Record:
        """Return the record after `task` was registered over `rows`, with new groups where they are enough.

        Groups made after the edition `answered`, the last that a message was answered in, were never used:
        the task's own are made anew. A group is used only while it is whole: each row there, with the content
        and the label that it had, and at least `floor` patients. The other patients of one that is not whole
        wait for ever: they and new companions would differ from the group by those who left it.
        """
        kept = self._without_unused(task, answered)
        use, present = kept.uses.get(task, Use()), {row.name: row for row in rows}
        whole = [number for number, one in kept.groups.items() if _whole(one, present, use, floor)]
        broken = set().union(*(kept.groups[one].patients for one in kept.groups if one not in whole))
        taken = set().union(*(one.contents for one in kept.groups.values()))
        fresh = [row for row in rows if row.name not in taken and row.patient not in broken]
        sides = kept.sides(rows)
        groups, waiting, edition = dict(kept.groups), set[str](), self.edition + 1
        for side in (True, False):
            here = [row for row in fresh if sides[row.patient] == side]
            if len(people := {row.patient for row in here}) < floor:
                waiting |= people
                continue
            for members in (group for pool in _by_folder(here, floor) for group in cut(pool, floor)):
                number = max(groups, default=0) + 1
                groups[number] = _group(members, learned=side, edition=edition)
                whole.append(number)
        used = {name: present[name].target for number in whole for name in groups[number].contents}
        silent = {row.patient for row in rows if row.patient in broken}
        targets = {**use.targets, **used}
        after = Use(tuple(sorted(whole)), targets, len(waiting), len(silent), refused or {})
        return Record(edition, groups, {**kept.uses, task: after})

    def sides(self, rows: Iterable[Row]) -> dict[str, bool]:
        """Return each patient's side: as a group has it, else learned from if any of the rows says so."""
        settled = {patient: one.learned for one in self.groups.values() for patient in one.patients}
        drawn: dict[str, bool] = defaultdict(bool)
        for row in rows:
            drawn[row.patient] |= row.learned
        return {**drawn, **settled}

    def select(self, task: str, rows: Iterable[Row], *, floor: int) -> dict[str, int]:
        """Return the group of each row that `task` uses.

        DataError: nothing is registered for it, or a group is not whole any more, or below the floor.
        """
        use, present = self.uses.get(task, Use()), {row.name: row for row in rows}
        if not use.groups:
            raise DataError(f"no rows are registered for this task. {AGAIN}")
        for number in use.groups:
            if not _whole(self.groups[number], present, use, floor):
                raise DataError(
                    f"a registered row can no longer be read as it was, or min-patients was raised. {AGAIN}"
                )
        return {name: number for number in use.groups for name in self.groups[number].contents}

    def patients(self, task: str) -> int:
        """Return how many patients the task uses."""
        groups = [self.groups[number] for number in self.uses.get(task, Use()).groups]
        return len(set().union(*(one.patients for one in groups)))

    def check_sides(self, task: str, rows: Sequence[Row], *, floor: int) -> None:
        """Raise TooSmallError, in counts for the hospital itself, where a side of the split has no group."""
        if {self.groups[number].learned for number in self.uses[task].groups} == {True, False}:
            return
        sides = self.sides(rows)
        learned = sum(sides[patient] for patient in _patients(rows))
        raise TooSmallError(
            f"of the patients that can be used {learned} are to learn from and "
            f"{len(_patients(rows)) - learned} to test on; min-patients in policy.toml asks for {floor} on "
            "each side, in rows that were never used or have not changed since. Add patients, choose another "
            "--adaptation-share, or lower it."
        )

    def _without_unused(self, task: str, answered: int) -> Record:
        """Return the record without the groups of `task` that no message was answered over, nor another's."""
        others = {number for name, use in self.uses.items() if name != task for number in use.groups}
        groups = {
            number: one for number, one in self.groups.items() if one.cut <= answered or number in others
        }
        names = set().union(*(one.contents for one in groups.values()))
        use = self.uses.get(task, Use())
        targets = {name: said for name, said in use.targets.items() if name in names}
        return replace(self, groups=groups, uses={**self.uses, task: replace(use, targets=targets)})


def _by_folder(rows: Sequence[Row], floor: int) -> list[list[Row]]:
    """Return rows by folder, so that one can be forgotten by itself; small ones go with the largest."""
    pools = sorted(_by(rows, lambda row: row.folder).values(), key=lambda here: -len(_patients(here)))
    large = [here for here in pools if len(_patients(here)) >= floor] or [[]]
    large[0] += [row for here in pools if len(_patients(here)) < floor for row in here]
    return large


def cut(rows: Sequence[Row], floor: int) -> list[list[Row]]:
    """Return rows of at least `floor` patients in groups of `floor` to 2 `floor` - 1 patients each.

    Rows of a class are among themselves where enough patients have it; the others are mixed, with companions
    of the most frequent class where they are too few alone. Who is with whom follows from keyed names.
    """
    classes = _by(rows, lambda row: row.stratum)
    large = {one: here for one, here in classes.items() if len(_patients(here)) >= floor}
    mixed = [row for one, here in classes.items() if one not in large for row in here]
    short = floor - len(_patients(mixed))
    if mixed and short > 0 and large:
        most = max(large, key=lambda one: (len(_patients(large[one])), -one))
        there = sorted(_patients(large[most]))
        alone = [patient for patient in there if patient not in _patients(mixed)][:short]
        moved = there if len(there) - short < floor else alone
        mixed += [row for row in large[most] if row.patient in moved]
        large[most] = [row for row in large[most] if row.patient not in moved]
    pools = [*(large[one] for one in sorted(large)), mixed]
    return [group for pool in pools if pool for group in _dealt(pool, floor)]


def _dealt(rows: Sequence[Row], floor: int) -> Iterable[list[Row]]:
    """Yield `floor` patients' rows at a time; the last take those who are left."""
    people = sorted(_patients(rows))
    count = len(people) // floor
    place = {patient: min(at // floor, count - 1) for at, patient in enumerate(people)}
    by_place = _by(rows, lambda row: place[row.patient])
    return (by_place[at] for at in range(count))


def _by(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found


def _patients(rows: Iterable[Row]) -> set[str]:
    return {row.patient for row in rows}


def _group(rows: Collection[Row], *, learned: bool, edition: int) -> Group:
    contents = {row.name: row.content for row in rows}
    return Group(learned, edition, contents, frozenset(_patients(rows)))


def _whole(group: Group, present: Mapping[str, Row], use: Use, floor: int) -> bool:
    """Return whether every row of a group is there as it was, for a task that may have used it before."""
    return len(group.patients) >= floor and all(
        name in present
        and present[name].content == content
        and use.targets.get(name, present[name].target) == present[name].target
        for name, content in group.contents.items()
    )
