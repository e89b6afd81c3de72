"""Whole runs of every kind of task: the same commands, wire and report as for classification."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.report.board import Board
from simulation.sites import import_images
from tests.conftest import give_key
from tests.simulation.test_run import command

QUICK = (
    "training.rounds=12",
    "training.inner-steps=20",
    "training.inner-lr=0.01",
    "adaptation.folds=1",
    "adaptation.draws=2",
    "adaptation.inner-steps=[20]",
    "adaptation.inner-lrs=[0.01]",
    "experiment.draws=3",
    "experiment.replicates=100",
    "experiment.shots=[0, 5]",
    'experiment.algorithms=["reptile", "local-only"]',
)


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *over: str) -> dict[str, Any]:
    """Run the command and return its results; the report has been written."""
    sets = [part for key in (*QUICK, *over) for part in ("--set", key)]
    assert command(monkeypatch, ["run", "--out", str(out), "--workers", "1", *sets]) == 0
    assert (out / "report.html").stat().st_size > 10_000
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def mean(results: dict[str, Any], metric: str, algorithm: str, shot: int) -> float:
    """Return a metric's mean over hospitals."""
    return float(
        np.mean(
            [
                row["mean"]
                for row in results["rows"]
                if (row["metric"], row["algorithm"], row["shot"]) == (metric, algorithm, shot)
            ]
        )
    )


def tables(parent: Path, columns: list[str]) -> Path:
    """Write three hospitals whose labels follow from two features; a finding is left empty at times."""
    for site in range(3):
        chance = np.random.default_rng(site)
        features = chance.normal(size=(80, 2))
        age = 50 + 15 * features[:, 0] - 10 * features[:, 1] + chance.normal(size=80)
        findings = (features + 0.3 * chance.normal(size=(80, 2)) > 0).astype(int)
        folder = parent / f"site-{site}"
        folder.mkdir(parents=True)
        give_key(folder, site)
        (folder / "schema.toml").write_text('numeric = ["a", "b"]\n')
        with (folder / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["a", "b", *columns])
            for row in range(80):
                known = ["" if row % 7 == 0 else findings[row, 0], findings[row, 1]]
                cells = [f"{age[row]:.2f}"] if columns == ["age"] else known
                writer.writerow([*(f"{value:.4f}" for value in features[row]), *cells])
    return parent


def test_a_number_is_learned_across_hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An age from a table: phi explains most of it at a hospital never seen, five patients alone do not."""
    results = run(
        monkeypatch,
        tmp_path / "out",
        f"data.hospitals={tables(tmp_path / 'hospitals', ['age'])}",
        "task.kind=regression",
        "task.label=age",
        "task.center=50",
        "task.spread=20",
        "model.name=linear",
    )
    assert results["metric"] == "mae"
    assert mean(results, "r2", "reptile", 0) > 0.8
    assert mean(results, "mae", "reptile", 0) < 6 < mean(results, "mae", "local-only", 5)
    assert {row["metric"] for row in results["rows"]} == {"mae", "rmse", "r2"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "MAE at the held-out hospital" in page
    assert results["curves"] == []
    assert not re.search(r"ROC|[Rr]eliability", page.replace("AUROC", ""))
    assert not (tmp_path / "out" / "predictions").exists()


def test_many_findings_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two findings from a table, one of them unknown in places."""
    results = run(
        monkeypatch,
        tmp_path / "out",
        f"data.hospitals={tables(tmp_path / 'hospitals', ['nodule', 'effusion'])}",
        "task.kind=multi-label",
        "task.label=findings",
        'task.classes=["nodule", "effusion"]',
        "model.name=linear",
    )
    assert mean(results, "auroc", "reptile", 0) > 0.95
    assert all(min(map(sum, one["per_class"].values())) > 0 for one in results["hospitals"])
    board = Board.of(results["rows"], "auroc")
    assert results["curves"]
    for one in results["curves"]:
        area = np.trapezoid(one["roc"]["tpr"], one["roc"]["fpr"])
        told = board.mean(one["algorithm"], one["shot"])
        assert told is not None
        assert area == pytest.approx(told.value, abs=1e-5)
    assert "Of each finding. Each is the mean" in (tmp_path / "out" / "report.html").read_text()


def vessels(parent: Path) -> Path:
    """Write three hospitals of images with bright bars, and masks of the bars, through import-images."""
    rows = []
    for site in range(3):
        chance = np.random.default_rng(site)
        for patient in range(18):
            mask = np.zeros((32, 32), np.uint8)
            at, wide = chance.integers(4, 24), chance.integers(3, 7)
            mask[:, at : at + wide] = 255
            noisy = 60 + 20 * site + 60 * (mask > 0) + chance.normal(0, 12, mask.shape)
            for kind, pixels in (("image", noisy.clip(0, 255).astype(np.uint8)), ("mask", mask)):
                path = parent / "files" / f"{kind}-{site}-{patient}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            rows.append(
                {
                    "file": f"files/image-{site}-{patient}.png",
                    "bars": f"files/mask-{site}-{patient}.png",
                    "site": f"site-{site}",
                    "patient": str(patient),
                }
            )
    with (parent / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    into(parent, parent / "hospitals")
    return parent / "hospitals"


def into(source: Path, folder: Path) -> list[Path]:
    """Import the images and masks of a table."""
    return import_images(
        source / "table.csv",
        folder,
        path_column="file",
        site_column="site",
        label_columns=[],
        mask_columns=["bars"],
        patient_column="patient",
        seed=0,
    )


def test_outlines_are_learned_across_hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A U-Net on three hospitals: phi finds the bars of a hospital never seen; the report shows examples."""
    results = run(
        monkeypatch,
        tmp_path / "out",
        f"data.hospitals={vessels(tmp_path / 'made')}",
        "data.image-size=32",
        "task.kind=segmentation",
        "task.label=bars",
        'task.classes=["background", "bar"]',
        "model.name=unet",
        "model.width=4",
        "experiment.shots=[0, 2]",
        "training.rounds=6",
    )
    assert results["metric"] == "dice"
    assert mean(results, "dice", "reptile", 0) > 0.7
    assert mean(results, "hd95", "reptile", 0) < 12
    page = (tmp_path / "out" / "report.html").read_text()
    judged = {row["site"] for row in results["rows"]}
    assert page.count("data:image/png;base64") == len(judged) > 1
    assert "base64" not in (tmp_path / "out" / "results.json").read_text()


def test_a_mask_that_is_no_file_is_left_out(tmp_path: Path) -> None:
    """Its row is told in skipped.csv; the other rows become hospitals."""
    parent = tmp_path / "made"
    vessels(parent)
    (parent / "files" / "mask-0-3.png").unlink()
    assert len(into(parent, tmp_path / "again")) == 3
    assert "bars: there is no such file" in (tmp_path / "again" / "skipped.csv").read_text()
    assert len((tmp_path / "again" / "site-0" / "labels.csv").read_text().splitlines()) == 18
