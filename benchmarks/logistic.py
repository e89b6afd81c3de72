"""Leave-one-hospital-out logistic regression on heart_4site: the bar that a federation has to beat on tables.

    python benchmarks/logistic.py [--quick] [--table heart_4site.csv]

Ten features, without slope, ca and thal, which are mostly missing outside Cleveland. The other three hospitals'
rows lie together, one scikit-learn regression with its defaults (L2, C = 1) is fitted, and AUROC is taken at the
held-out hospital: on all its rows, and on its test half as this project splits it for simulation seed 0.
Two ways to prepare the rows: `per hospital`, as client.dataset does (standardised with each hospital's own
adaptation half, missing becomes 0, the mean); `pooled` (median and scale of the training hospitals, and the
held-out hospital measured by them). Cholesterol 0 means missing in both, and is tried as a number. --quick is the
same, as all of it takes seconds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from client.dataset import Hospital, open_hospital
from common.sections import Data, Task
from simulation.hospital import new_hospital

TABLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "heart_4site" / "heart_4site.csv"
NUMERIC = ("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak")
CATEGORICAL = {"cp": ["1", "2", "3", "4"], "restecg": ["0", "1", "2"]}
REFERENCE = {"cleveland": 0.85, "hungarian": 0.87, "switzerland": 0.70, "va": 0.72}
TASK = Task(label="disease", classes=("0", "1"))
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Prepared:
    """One hospital's rows: features `[row, feature]`, labels `[row]`, and which rows are its test half."""

    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    test: NDArray[np.bool_]


def read(table: Path) -> Mapping[str, Rows]:
    """Return the rows of each hospital, in the file's order."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {site: [row for row in rows if row["site"] == site] for site in sorted({r["site"] for r in rows})}


def open_all(sites: Mapping[str, Rows], parent: Path, *, zero_is_missing: bool) -> dict[str, Hospital]:
    """Write each hospital as table.csv with schema.toml, and open it as a node does."""
    schema = f'label = "disease"\nnumeric = {json.dumps(NUMERIC)}\n[categorical]\n'
    schema += "".join(f"{name} = {json.dumps(values)}\n" for name, values in CATEGORICAL.items())
    schema += "[missing]\nchol = [0]\n" if zero_is_missing else ""
    opened = {}
    for site, rows in sites.items():
        with new_hospital(parent, site, seed=0) as folder:
            with (folder / "table.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            (folder / "schema.toml").write_text(schema)
        opened[site] = open_hospital(parent / site, Data(), TASK)
    return opened
