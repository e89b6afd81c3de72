"""Labels of every kind as hospitals write them: what can be used is read, the rest has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.dataset import open_hospital
from client.preflight import Reason
from client.targets import target_of
from common.errors import DataError
from common.sections import Data, Task
from tests.conftest import give_key

AGE = Task(kind="regression", label="age")
FINDINGS = Task(kind="multi-label", label="findings", classes=("nodule", "effusion"))


@pytest.mark.parametrize(
    ("task", "cells", "found"),
    [
        (AGE, ("61.5",), 61.5),
        (AGE, ("?",), Reason.MISSING_LABEL),
        (AGE, ("old",), Reason.NOT_A_NUMBER),
        (AGE, ("inf",), Reason.NOT_A_NUMBER),
        (FINDINGS, ("1", "0.0"), (1, 0)),
        (FINDINGS, ("", "1"), (-1, 1)),
        (FINDINGS, ("-1", "0"), (-1, 0)),
        (FINDINGS, ("", "nan"), Reason.MISSING_LABEL),
        (FINDINGS, ("-1", ""), Reason.MISSING_LABEL),
        (FINDINGS, ("yes", "0"), Reason.NOT_YES_OR_NO),
        (FINDINGS, ("2", "0"), Reason.NOT_YES_OR_NO),
        (Task(), ("nan",), Reason.MISSING_LABEL),
        (Task(), ("cyst",), Reason.UNKNOWN_CLASS),
        (Task(), ("effusion",), 1),
    ],
)
def test_a_label_is_a_target_or_a_reason(task: Task, cells: tuple[str, ...], found: object) -> None:
    """Numbers, findings and classes; what is uncertain is unknown."""
    assert target_of(cells, task) == found


def table(folder: Path, header: str, rows: list[str]) -> Path:
    """Write a table hospital with one feature."""
    folder.mkdir()
    give_key(folder)
    (folder / "schema.toml").write_text('numeric = ["x"]\n')
    (folder / "table.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_a_table_of_numbers_to_predict(tmp_path: Path) -> None:
    """Every row with a number is a case; nothing is counted by class."""
    rows = [f"{row},{20 + row}" for row in range(20)] + ["1,unknown", "2,"]
    hospital = open_hospital(table(tmp_path / "site", "x,age", rows), Data(), AGE)
    ages = torch.cat([hospital.adaptation.labels, hospital.test.labels])
    assert ages.dtype == torch.float32
    assert sorted(ages.tolist()) == [20.0 + row for row in range(20)]
    assert hospital.census.per_class == {}
    assert hospital.census.refused == {"label is no number": 1, "missing label": 1}
    assert set(hospital.adaptation.strata.tolist()) == {0}


def test_a_table_of_findings(tmp_path: Path) -> None:
    """A column a finding; a row with any known finding is a case."""
    rows = [f"{row},{row % 2},{'' if row % 3 else 1}" for row in range(20)] + ["1,,", "2,3,0"]
    folder = table(tmp_path / "site", "x,nodule,effusion", rows)
    hospital = open_hospital(folder, Data(), FINDINGS)
    labels = torch.cat([hospital.adaptation.labels, hospital.test.labels])
    assert labels.shape == (20, 2)
    assert hospital.census.per_class == {"nodule": 10, "effusion": 7}
    assert hospital.census.refused == {"label is neither 0 nor 1": 1, "missing label": 1}


def test_a_table_has_no_masks(tmp_path: Path) -> None:
    """One clear error."""
    folder = table(tmp_path / "site", "x,mask", ["1,a.png", "2,b.png"])
    with pytest.raises(DataError, match="segmentation needs images with masks"):
        open_hospital(folder, Data(), Task(kind="segmentation", label="mask", classes=("a", "b")))
