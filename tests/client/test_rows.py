"""Which rows are ever summed: whole groups, whatever happens to the data between two answers."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.book import Book
from client.rows import Record, Row, cut
from common.errors import DataError

FLOOR = 4
Rows = dict[str, Row]


def rows_of(patients: int, classes: int = 2, *, images: int = 1, first: int = 0) -> Rows:
    """Return rows by name: patients from number `first` on, with as many images each, of classes in turn."""
    made = [
        Row(f"r{patient}.{image}", f"p{patient}", "c", "t", (patient + image) % classes, patient % 2 == 0)
        for patient in range(first, first + patients)
        for image in range(images)
    ]
    return {row.name: row for row in made}


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=80), st.integers(1, 12)
)
def test_groups_have_a_floor_of_patients_and_leave_nobody_out(
    drawn: list[tuple[int, int]], floor: int
) -> None:
    """`floor` to 2 `floor` - 1 patients each, and every row in one."""
    rows = [
        Row(f"r{at}", f"p{patient}", "", "", stratum, True) for at, (patient, stratum) in enumerate(drawn)
    ]
    if len({row.patient for row in rows}) < floor:
        return
    groups = cut(rows, floor)
    assert sorted(row.name for group in groups for row in group) == sorted(row.name for row in rows)
    assert all(floor <= len({row.patient for row in group}) <= 2 * floor - 1 for group in groups)
    if floor == 1:
        assert all(len({row.stratum for row in group}) == 1 for group in groups)


def test_a_rare_class_is_mixed_with_a_frequent_one() -> None:
    """Three patients of a rare class and one of the frequent are a group; the other nine stay pure."""
    rows = [Row(f"r{at}", f"p{at}", "", "", int(at < 3), True) for at in range(13)]
    strata = [sorted(row.stratum for row in group) for group in cut(rows, 4)]
    assert sorted(strata) == [[0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1]]


def of_classes(*counts: int) -> list[Row]:
    """Return rows of as many patients of each class."""
    strata = [stratum for stratum, count in enumerate(counts) for _ in range(count)]
    return [Row(f"r{at}", f"p{at:03}", "", "", stratum, True) for at, stratum in enumerate(strata)]


@pytest.mark.parametrize(
    ("counts", "companions"),
    [
        ((8, 12, 3), 1),  # the most frequent
        ((12, 12, 3), 0),  # of equals the first
        ((4, 3), 0),  # none could stay without the companion, so all come along
        ((5, 3), 0),  # enough stay, so one comes
    ],
)
def test_companions_are_of_the_most_frequent_class_and_leave_it_no_group_too_small(
    counts: tuple[int, ...], companions: int
) -> None:
    """One more patient makes the three rare ones a group; who is left is enough for another, or comes too."""
    rare = len(counts) - 1
    groups = cut(of_classes(*counts), FLOOR)
    (mixed,) = (group for group in groups if any(row.stratum == rare for row in group))
    came = [row.stratum for row in mixed if row.stratum != rare]
    assert set(came) == {companions}
    assert len(came) == (1 if counts[companions] - 1 >= FLOOR else counts[companions])
    assert all(len({row.stratum for row in group}) == 1 for group in groups if group is not mixed)


class History:
    """A hospital's data over time, under two labels, and everything that was ever answered about them."""

    def __init__(self, seed: int) -> None:
        self.chance, self.next = random.Random(seed), 24
        self.rows = rows_of(24, images=2)
        self.labels: dict[str, dict[str, str]] = {"a": {}, "b": {}}
        self.absent: set[str] = set()
        self.record, self.answered = Record(), 0
        self.sets: list[tuple[str, frozenset[tuple[str, str, str, str]]]] = []

    def step(self) -> None:
        """Let something happen."""
        self.chance.choice(
            [self.come, self.come, self.go, self.change, self.relabel, self.another_image, self.lose_labels]
        )()
        if self.chance.random() < 0.6:
            task = self.chance.choice("ab")
            answered = self.answered
            self.record = self.record.registered(task, self.seen(task), floor=FLOOR, answered=answered)
        for task in "ab":
            self.ask(task)

    def seen(self, task: str) -> list[Row]:
        """Return the rows as a task sees them."""
        return [
            replace(row, target=self.labels[task].get(name, "t"))
            for name, row in self.rows.items()
            if not (task == "b" and name in self.absent)
        ]

    def ask(self, task: str) -> None:
        """Ask for everything that a coordinator may choose, and note which rows are answered about."""
        rows = self.seen(task)
        try:
            chosen = self.record.select(task, rows, floor=FLOOR)
        except DataError:
            return
        self.answered = self.record.edition
        by_name = {row.name: row for row in rows}
        for sides in ({True}, {True, False}):
            for strata in ({0}, {1}, {0, 1}):
                used = [
                    number
                    for number in set(chosen.values())
                    if self.record.groups[number].learned in sides
                    and {by_name[name].stratum for name in self.record.groups[number].contents} <= strata
                ]
                names = [name for name, number in chosen.items() if number in used]
                told = [by_name[name] for name in names]
                keys = frozenset((row.name, row.content, row.target, row.patient) for row in told)
                self.sets.append((task, keys))

    def come(self) -> None:
        """Let new patients come."""
        count = self.chance.randint(1, 6)
        self.rows |= rows_of(count, images=self.chance.randint(1, 2), first=self.next)
        self.next += count

    def go(self) -> None:
        """Let a patient go."""
        patient = self.chance.choice(sorted(self.rows.values(), key=str)).patient
        self.rows = {name: row for name, row in self.rows.items() if row.patient != patient}

    def change(self) -> None:
        """Let a row change, or change back."""
        name = self.chance.choice(sorted(self.rows))
        self.rows[name] = replace(self.rows[name], content=f"c{self.chance.randint(0, 1)}")

    def relabel(self) -> None:
        """Let a row have another label."""
        name, task = self.chance.choice(sorted(self.rows)), self.chance.choice("ab")
        self.labels[task][name] = f"t{self.chance.randint(0, 1)}"

    def another_image(self) -> None:
        """Let a patient have another image, of another class."""
        row = self.chance.choice(sorted(self.rows.values(), key=str))
        name = f"{row.name}+"
        self.rows[name] = replace(row, name=name, stratum=1 - row.stratum)

    def lose_labels(self) -> None:
        """Let rows lose the second label."""
        self.absent |= set(self.chance.sample(sorted(self.rows), min(3, len(self.rows))))


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_any_two_answers_differ_by_nobody_or_a_floor_of_patients(seed: int) -> None:
    """Whatever came, went, changed or was labelled anew, under two labels, whenever it was registered."""
    history = History(seed)
    history.record = history.record.registered("a", history.seen("a"), floor=FLOOR, answered=0)
    for _ in range(12):
        if history.rows:
            history.step()
    assert history.sets
    for (task, one), (another, other) in combinations(set(history.sets), 2):
        apart = {
            row[-1] for row in (one ^ other if task == another else _unlabelled(one) ^ _unlabelled(other))
        }
        assert not apart or len(apart) >= FLOOR


def _unlabelled(rows: frozenset[tuple[str, str, str, str]]) -> set[tuple[str, str, str]]:
    """Return rows without what a label says of them: two labels' sums have those in common."""
    return {(name, content, patient) for name, content, _, patient in rows}


def test_new_patients_wait_until_they_are_a_group() -> None:
    """Three of a side wait with a floor of four; the fourth lets them in, and nobody else's group moves."""
    rows = rows_of(24)
    first = Record().registered("a", list(rows.values()), floor=FLOOR, answered=0)
    come = rows_of(6, first=24)
    some = first.registered("a", [*rows.values(), *come.values()], floor=FLOOR, answered=1)
    assert some.uses["a"].groups == first.uses["a"].groups
    assert some.uses["a"].waiting == 6
    more = rows_of(8, first=24)
    all_in = some.registered("a", [*rows.values(), *more.values()], floor=FLOOR, answered=2)
    assert set(first.uses["a"].groups) < set(all_in.uses["a"].groups)
    assert all_in.uses["a"].waiting == 0


def test_after_an_erasure_the_others_of_the_group_stay_silent() -> None:
    """Answering stops at once; registered again, the group of who left is never used, nor its members."""
    rows = rows_of(24)
    record = Record().registered("a", list(rows.values()), floor=FLOOR, answered=0)
    gone = next(iter(rows))
    group = record.select("a", rows.values(), floor=FLOOR)[gone]
    left = [row for name, row in rows.items() if name != gone]
    with pytest.raises(DataError, match="registered row can no longer be read"):
        record.select("a", left, floor=FLOOR)
    after = record.registered("a", left, floor=FLOOR, answered=1)
    assert set(after.uses["a"].groups) == set(record.uses["a"].groups) - {group}
    assert after.uses["a"].silent == len(record.groups[group].patients) - 1
    back = after.registered("a", list(rows.values()), floor=FLOOR, answered=2)
    assert set(back.uses["a"].groups) == set(record.uses["a"].groups)


def test_rows_written_anew_do_not_come_back_in_their_old_companys_place() -> None:
    """A table whose every line was edited: one patient's difference would stand between old and new sums."""
    rows = list(rows_of(24).values())
    record = Record().registered("a", rows, floor=FLOOR, answered=0)
    anew = [replace(row, name=f"{row.name}'") for row in rows]
    after = record.registered("a", anew, floor=FLOOR, answered=1)
    assert not after.uses["a"].groups
    assert after.uses["a"].silent == 24


def test_what_was_never_answered_is_cut_anew() -> None:
    """A slip of the operator's costs nothing before the first message."""
    rows = list(rows_of(24).values())
    record = Record().registered("a", rows[:-1], floor=FLOOR, answered=0)
    again = record.registered("a", rows, floor=2, answered=0)
    assert again.uses["a"].silent == again.uses["a"].waiting == 0
    assert {name for one in again.groups.values() for name in one.contents} == {row.name for row in rows}
    assert {one.cut for one in again.groups.values()} == {2}


def test_a_raised_floor_silences_smaller_groups() -> None:
    """Judged at every message, and when registering."""
    rows = list(rows_of(24).values())
    record = Record().registered("a", rows, floor=3, answered=0)
    with pytest.raises(DataError, match="min-patients was raised"):
        record.select("a", rows, floor=7)
    assert not record.registered("a", rows, floor=7, answered=1).uses["a"].groups


def test_a_book_is_kept_and_its_owners_alone(tmp_path: Path) -> None:
    """What is written is read back equal; a damaged one is an error, never an empty one."""
    book, rows = Book(tmp_path / "state" / "rows.json"), list(rows_of(24).values())
    written = book.register("a", rows, floor=FLOOR, refused={"no-pixels": 12})
    assert book.load() == written
    assert written.uses["a"].refused == {"no-pixels": 12}
    book.answer(written.edition)
    assert {path.name for path in book.path.parent.iterdir() if path.stat().st_mode & 0o077} <= {"rows.lock"}
    with pytest.raises(DataError, match="registered anew"):
        book.answer(written.edition + 1)
    assert book.register("a", rows[:-1], floor=FLOOR).uses["a"].silent > 0
    book.path.write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        book.load()
    book.path.with_suffix(".answered").write_text("?")
    with pytest.raises(DataError, match="answered: is damaged"):
        book.answer(1)


def test_who_leaves_uses_no_row_and_others_keep_theirs(tmp_path: Path) -> None:
    """Another label over the same patients goes on."""
    book, rows = Book(tmp_path / "rows.json"), list(rows_of(24).values())
    for task in ("a", "b"):
        book.register(task, rows, floor=FLOOR)
    both = book.load()
    assert both.patients("a") == both.patients("b") == 24
    book.leave("a")
    left = book.load()
    assert (left.patients("a"), left.patients("b"), left.patients("never")) == (0, 24, 0)
    assert left.uses.keys() == {"a", "b"}


def test_too_few_on_a_side_are_refused_in_words(tmp_path: Path) -> None:
    """Nothing is written; the message tells both sides and what to do."""
    book = Book(tmp_path / "rows.json")
    with pytest.raises(DataError, match=r"3 are to learn from and 3 to test on; min-patients .* asks for 4"):
        book.register("a", list(rows_of(6).values()), floor=FLOOR)
    assert not book.path.exists()
