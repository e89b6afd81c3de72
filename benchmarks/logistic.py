"""Leave-one-hospital-out logistic regression on heart_4site: the bar that a federation has to beat on tables.

    python benchmarks/logistic.py [--quick] [--table heart_4site.csv]

Every row, ten features: slope, ca and thal are mostly missing outside Cleveland. The rows of the other three
hospitals lie together and one scikit-learn regression (L2, C = 1) is fitted on them. AUROC at the held-out
hospital is taken on all its rows, and on its test half as this project splits it for simulation seed 0.

per hospital   as client.dataset does: standardised with each hospital's own adaptation half, missing its mean
pooled         scale, and median for missing, of the training hospitals; the held-out one is scaled by them
plain numbers  as pooled, with chest pain and ECG as one number each and cholesterol 0 as a value: this gives
               the reference

--quick changes nothing: it takes seconds. The last line is one JSON object.
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
CATEGORICAL = {"cp": ("1", "2", "3", "4"), "restecg": ("0", "1", "2")}
REFERENCE = {"cleveland": 0.85, "hungarian": 0.87, "switzerland": 0.70, "va": 0.72}
TASK = Task(label="disease", classes=("0", "1"))
LINE = "line"
"""Our own column of patients, so that a row's side of the split can be looked up."""
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Prepared:
    """One hospital's rows: features `[row, feature]`, labels `[row]`, and which rows are its test half."""

    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    test: NDArray[np.bool_]


def read(table: Path) -> dict[str, Rows]:
    """Return the rows of each hospital, in the file's order, numbered."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sites = sorted({row["site"] for row in rows})
    own = {site: [row for row in rows if row["site"] == site] for site in sites}
    return {site: [row | {LINE: f"{n:04}"} for n, row in enumerate(rows)] for site, rows in own.items()}


def open_all(sites: Mapping[str, Rows], parent: Path) -> dict[str, Hospital]:
    """Write each hospital as table.csv with schema.toml, and open it as a node does."""
    schema = (
        f'label = "disease"\npatient = "{LINE}"\nnumeric = {json.dumps(NUMERIC)}\n[missing]\nchol = [0]\n'
    )
    schema += "[categorical]\n"
    schema += "".join(f"{name} = {json.dumps(values)}\n" for name, values in CATEGORICAL.items())
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


def per_hospital(hospital: Hospital) -> Prepared:
    """Return the rows as client.dataset prepares them."""
    every = hospital.everyone
    test = np.arange(len(every)) >= len(hospital.adaptation)
    return Prepared(every.inputs.double().numpy(), every.labels.numpy(), test)


def unscaled(rows: Rows, hospital: Hospital, *, plain: bool) -> Prepared:
    """Return the same rows as numbers, NaN where not measured, with the same split.

    With `plain` a categorical column is one number and cholesterol 0 a value; else indicators and NaN.
    """
    values = {
        name: np.array([float(row[name] or "nan") for row in rows]) for name in (*NUMERIC, *CATEGORICAL)
    }
    if plain:
        columns = list(values.values())
    else:
        values["chol"][values["chol"] == 0] = np.nan
        columns = [values[name] for name in NUMERIC]
        columns += [
            (values[name] == float(one)).astype(float) for name in CATEGORICAL for one in CATEGORICAL[name]
        ]
    labels = np.array([int(row["disease"]) for row in rows])
    # `patients` numbers the lines in their own order, so a row's place is its patient's number.
    test = np.isin(np.arange(len(rows)), hospital.test.patients.numpy())
    return Prepared(np.column_stack(columns), labels, test)


def held_out(prepared: Mapping[str, Prepared], site: str, *, scale: bool) -> tuple[float, float]:
    """Return the AUROC at `site` of a regression fitted on the others: all its rows, and its test half."""
    others = [one for name, one in prepared.items() if name != site]
    before = (SimpleImputer(strategy="median"), StandardScaler()) if scale else ()
    model = make_pipeline(*before, LogisticRegression(max_iter=1000))
    model.fit(
        np.concatenate([one.features for one in others]), np.concatenate([one.labels for one in others])
    )
    here = prepared[site]
    score = model.predict_proba(here.features)[:, 1]
    whole, half = (
        float(roc_auc_score(here.labels[rows], score[rows]))
        for rows in (np.full_like(here.test, True), here.test)
    )
    return whole, half


def measure(sites: Mapping[str, Rows], parent: Path) -> dict[str, list[tuple[float, float]]]:
    """Return for each preparation the AUROC pairs, hospital by hospital."""
    hospitals = open_all(sites, parent)
    own = {site: per_hospital(hospital) for site, hospital in hospitals.items()}
    raw = {site: unscaled(sites[site], one, plain=False) for site, one in hospitals.items()}
    plain = {site: unscaled(sites[site], one, plain=True) for site, one in hospitals.items()}
    return {
        "per_hospital": [held_out(own, site, scale=False) for site in sites],
        "pooled": [held_out(raw, site, scale=True) for site in sites],
        "plain_numbers": [held_out(plain, site, scale=True) for site in sites],
    }


def main() -> None:
    """Print the table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--table", type=Path, default=TABLE, help="the four hospitals as one CSV")
    chosen = parser.parse_args()
    if not chosen.table.is_file():
        parser.exit(2, f"{chosen.table}: there is no such table. Name it with --table.\n")
    sites = read(chosen.table)
    table = Table(title="AUROC at the held-out hospital: all rows / test half")
    for column in ("rows prepared", *(f"{site} ({len(sites[site])} rows)" for site in sites)):
        table.add_column(column)
    table.add_row("reference", *(f"{REFERENCE[site]:.2f}" for site in sites))
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(sites, Path(scratch))
    figures: dict[str, float] = {}
    for how, pairs in found.items():
        table.add_row(how.replace("_", " "), *(f"{whole:.3f} / {half:.3f}" for whole, half in pairs))
        for site, (whole, half) in zip(sites, pairs, strict=True):
            figures |= {f"{how}_{site}_all": round(whole, 4), f"{how}_{site}_test": round(half, 4)}
    Console(width=120).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
