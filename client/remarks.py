"""What a hospital is told of its data that stops nothing, in counts and in words for itself alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from client.cells import NOT_MEASURED, PLACEHOLDERS, alike, class_of, comparable, without_zeros
from client.tables import Table
from common.sections import Task

LONGEST_KEY = 32
"""Digits to which a key is filled up with zeros."""
MANY_CATEGORIES = 20
"""More than this may be names, dates or numbers that were taken for categories."""
ROWS_A_VALUE = 5
"""With so many rows of a value, on average, it is no chance that a column tells the label."""
MOST_KEYS = 1000
"""Keys that are tried so; more would tell no more."""


def about_classes(labels: Sequence[str], task: Task) -> list[str]:
    """Return which classes occur nowhere among a label's cells, and what differs from one by case alone."""
    if task.kind != "classification":
        return []
    present = {class_of(cell, task.classes) for cell in labels}
    places = {alike(name): name for name in task.classes}
    others = [cell for cell in labels if cell.lower() not in NOT_MEASURED]
    near = Counter(places.get(alike(cell)) for cell in others if class_of(cell, task.classes) is None)
    return [
        *(
            f"no row's {task.label} is {name}; see whether that class is spelt so there"
            for place, name in enumerate(task.classes)
            if place not in present
        ),
        *(
            f"{near[name]} rows are left out because their {task.label} differs from {name} by case or "
            "blanks alone; write it alike"
            for name in task.classes
            if near[name]
        ),
    ]


def about_table(table: Table, task: Task, usable: Iterable[int]) -> list[str]:
    """Return what is doubtful about a table, of whose rows `usable` can be used."""
    usable = list(usable)
    told = [
        *about_classes([cells[0] for cells in table.labels], task),
        *_about_categories(table),
        *_about_answers(table, task, usable),
    ]
    if not table.schema.patient:
        return [*told, *_about_copies((table.contents[row], str(table.labels[row])) for row in usable)]
    patients = [(table.patients[row], without_zeros(table.patients[row])) for row in usable]
    return [*told, *about_patients(table.schema.patient, patients, PLACEHOLDERS)]


def _about_categories(table: Table) -> list[str]:
    """Return which columns have so many categories that they may hold what is only one patient's."""
    return [
        f"{name} has {len(categories)} categories in schema.toml, which the coordinator is told; see that "
        "none says who a patient is"
        for name, categories in table.schema.categorical.items()
        if len(categories) > MANY_CATEGORIES
    ]


def _about_answers(table: Table, task: Task, usable: Sequence[int]) -> list[str]:
    """Return which columns tell the class: each value of theirs stands with one alone."""
    if task.kind != "classification":
        return []
    labels = [class_of(table.labels[row][0], task.classes) for row in usable]
    told = []
    for name in (*table.schema.numeric, *table.schema.categorical):
        cells = table.sheet.column(name, purpose="a feature")
        pairs = [
            (comparable(cells[row]), label)
            for row, label in zip(usable, labels, strict=True)
            if cells[row].lower() not in NOT_MEASURED
        ]
        class_by_value = dict(pairs)
        tells = all(class_by_value[value] == label for value, label in pairs)
        often = len(pairs) >= max(ROWS_A_VALUE * len(class_by_value), len(usable) / 2)
        if tells and often and len(set(class_by_value.values())) > 1:
            told.append(
                f"{name} tells the {task.label}: whoever has the same value of it has the same class. Where"
                " it is that diagnosis in other words, take it out of schema.toml"
            )
    return told


def about_patients(
    column: str, patients: Sequence[tuple[str, str]], placeholders: Iterable[str]
) -> list[str]:
    """Return what is doubtful about who is whose patient.

    Of each case `patients` has the patient and what those share who differ by case, blanks or leading zeros
    alone; `placeholders` are the latter for PLACEHOLDERS. Empty ones are no patient's.
    """
    told, twins = [], defaultdict[str, set[str]](set)
    for patient, shared in patients:
        twins[shared].add(patient)
    twice = sum(len(some) for shared, some in twins.items() if shared and len(some) > 1)
    if twice:
        told.append(
            f"{twice} patients differ from another by case, blanks or leading zeros of {column} alone. Each "
            "counts as one of its own, so that one person may be learned from and tested on; write them alike"
        )
    nameless = set(placeholders)
    hidden = sum(shared in nameless for _, shared in patients)
    if hidden > 1:
        told.append(
            f"{hidden} cases have a placeholder for {column}, such as ANONYMOUS, and count as one patient's; "
            "give every patient a pseudonym"
        )
    return told


def _about_copies(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return how many rows of a table without patients are copies; a row is its features and its label."""
    copies = sum(count - 1 for count in Counter(rows).values())
    if not copies:
        return []
    many = "1 row is a copy" if copies == 1 else f"{copies} rows are copies"
    return [
        f"{many} of another, and no patient column tells whose they are: a copy may be learned from and "
        "tested on. Take copies out, or name the patient column in schema.toml"
    ]


def about_keys(column: str, keys: Sequence[str], missed: Sequence[str], found: Callable[[str], bool]) -> str:
    """Return how many of labels.csv's keys match no image, with a guess why where they are half of them.

    `found` tells whether an image has a key.
    """
    if not missed:
        return ""
    said = f"{len(missed)} of {len(keys)} rows in labels.csv match no image"
    if 2 * len(missed) < len(keys):
        return said
    tried = missed[:MOST_KEYS]
    guesses = {
        "would with leading zeros, which a spreadsheet takes off: export the column as text": sum(
            any(map(found, _filled(key))) for key in tried
        ),
        "would without their leading zeros: write them as the images do": sum(
            key[:1] == "0" and found(key.lstrip("0")) for key in tried
        ),
        "are written like 1.2E+15, as a spreadsheet shortens them: export the column as text": sum(
            bool(re.fullmatch(r"\d([.,]\d+)?[eE]\+?\d+", key)) for key in tried
        ),
        "are whole paths: write them from the folder on": sum(
            column == "path" and bool(re.match(r"/|[A-Za-z]:", key)) for key in tried
        ),
    }
    why, count = max(guesses.items(), key=lambda guess: guess[1])
    return f"{said}; {count} of the {len(tried)} that were tried {why}" if count else said


def _filled(key: str) -> Iterable[str]:
    """Yield a number with ever more zeros before it."""
    if key.isdecimal() and key.isascii():
        yield from (key.zfill(length) for length in range(len(key) + 1, LONGEST_KEY + 1))
