"""Outcomes as labels, and a second table joined: who has an answer, who is left out, what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, DataError
from simulation import cli
from simulation.follow_up import FollowUp
from simulation.source import read_source
from simulation.tables import import_table

PATIENTS = """pid,age,E,T
early,50,1,100
late,51,1.0,401
on the day,52,1,365
through,53,0,365
lost,54,0,364
odd event,55,2,100
no time,56,1,
before,57,1,-1
nowhere,58,0,800
"""
SITES = """pid,region
early,north
late,north
on the day,north
through,north
lost,north
odd event,north
no time,north
before,north
stranger,south
"""


def _import(
    folder: Path, *, sites: str = SITES, label: str = "died", horizon: float = 365, on: str = "pid"
) -> list[Path]:
    (folder / "patients.csv").write_text(PATIENTS)
    (folder / "sites.csv").write_text(sites)
    return import_table(
        folder / "patients.csv",
        folder / "out",
        site_column="region",
        label_column=label,
        numeric=[],
        categorical=[],
        missing={},
        patient_column="pid",
        follow_up=FollowUp("E", "T", horizon),
        joined=(folder / "sites.csv", on),
        seed=0,
    )


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_event_by_the_horizon_is_1_and_being_followed_through_it_0(tmp_path: Path) -> None:
    """On the day itself counts either way; an event after it is none; event and time are no features."""
    (north,) = _import(tmp_path)
    assert _read(north / "table.csv") == [
        {"pid": "early", "died": "1", "age": "50"},
        {"pid": "late", "died": "0", "age": "51"},
        {"pid": "on the day", "died": "1", "age": "52"},
        {"pid": "through", "died": "0", "age": "53"},
    ]


def test_who_has_no_answer_is_told_by_line(tmp_path: Path) -> None:
    """Lost before the horizon, an event or time that is none, and no row in the joined table."""
    _import(tmp_path)
    assert [(row["line"], row["reason"]) for row in _read(tmp_path / "out" / "skipped.csv")] == [
        ("6", "followed for less than the horizon, without the event"),
        ("7", "E: must be 0 or 1"),
        ("8", "T: must be a number, 0 or more"),
        ("9", "T: must be a number, 0 or more"),
        ("10", "pid: not in sites.csv"),
    ]


@pytest.mark.parametrize(
    ("sites", "on", "message"),
    [
        (SITES + "late,south\n", "pid", "line 11: repeats an earlier line's pid"),
        (SITES.replace("region", "age"), "pid", "column age is in .*patients.csv as well"),
        (SITES, "id", "no column id. Did you mean pid"),
        (SITES.replace("pid,", "key,"), "pid", "sites.csv: has no column pid"),
    ],
)
def test_tables_that_cannot_be_joined_are_refused(tmp_path: Path, sites: str, on: str, message: str) -> None:
    """The message names the file, and a line rather than a patient."""
    with pytest.raises(DataError, match=message) as error:
        _import(tmp_path, sites=sites, on=on)
    assert "late" not in str(error.value)


def test_a_row_that_would_join_with_leading_zeros_says_so(tmp_path: Path) -> None:
    """Where a spreadsheet took them off in one of the two files."""
    (tmp_path / "one.csv").write_text("pid,x\n7,1\n8,1\n90,1\n", encoding="utf-8")
    (tmp_path / "two.csv").write_text("pid,y\n007,1\n8,1\n009,1\n", encoding="utf-8")
    source = read_source(tmp_path / "one.csv")
    source.join(read_source(tmp_path / "two.csv"), "pid")
    assert source.skipped == {
        2: "pid: in two.csv with other leading zeros, case or blanks alone",
        4: "pid: not in two.csv",
    }


def test_cells_left_empty_join_nothing(tmp_path: Path) -> None:
    """Two unnamed rows are not the same patient."""
    (tmp_path / "one.csv").write_text("pid,age\n,50\na,51\n")
    (tmp_path / "two.csv").write_text("pid,region\n,north\n,south\na,east\n")
    source = read_source(tmp_path / "one.csv")
    source.join(read_source(tmp_path / "two.csv"), "pid")
    assert [dict(row.cells) for row in source.rows] == [{"pid": "a", "age": "51", "region": "east"}]


def test_the_label_is_a_new_column(tmp_path: Path) -> None:
    """A column that is there already would be overwritten."""
    with pytest.raises(ConfigError, match="--label-column age: is a column of"):
        _import(tmp_path, label="age")


@pytest.mark.parametrize("horizon", [0.0, -1.0, float("inf"), float("nan")])
def test_a_horizon_lies_ahead(horizon: float) -> None:
    """Nobody is followed for ever, or less than no time."""
    with pytest.raises(ConfigError, match="must be above 0"):
        FollowUp("E", "T", horizon)


@pytest.mark.parametrize(
    "given", [{"horizon": 365.0}, {"event_column": "E", "time_column": "T"}, {"on": "pid"}]
)
def test_options_that_belong_together_are_given_together(tmp_path: Path, given: dict[str, Any]) -> None:
    """Half of what makes a label, or a join, is a mistake, told before anything is read."""
    with pytest.raises(ConfigError, match="go together"):
        cli.import_table(tmp_path / "none.csv", tmp_path / "out", "region", "died", **given)
