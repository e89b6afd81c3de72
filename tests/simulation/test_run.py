"""A whole run through the command line: what it leaves behind, what it repeats, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from common.config import from_json, load
from common.initialise import shared_weights
from common.sections import Phantoms
from simulation import cli
from simulation.phantoms import write_hospitals
from tests.conftest import write_table_hospital

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    'task.classes=["normal", "nodule"]',
    "model.name=mlp",
    "model.width=8",
    "training.rounds=3",
    "adaptation.folds=1",
    "adaptation.draws=2",
    "adaptation.inner-steps=[5]",
    "experiment.held-out=[]",
    "experiment.shots=[0, 1, 5]",
    "experiment.draws=3",
    "experiment.replicates=100",
)
"""Settings for tables that take seconds, over the demonstration's."""
FIGURES = ("rows", "differences", "hurt", "recipes", "left_out", "hospitals", "parameters", "curves")
"""What of results.json must never depend on where or in how many pieces a run was computed."""

Write = Callable[[int], Path]


def arguments(out: Path, hospitals: Path, *over: str, workers: int = 1) -> list[str]:
    """Return the command line of a small run."""
    sets = [part for key in (f"data.hospitals={hospitals}", *SMALL, *over) for part in ("--set", key)]
    return ["run", "--out", str(out), "--workers", str(workers), *sets]


def command(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["zamenis-simulate", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def results(out: Path) -> dict[str, Any]:
    """Return results.json, refusing the NaN and Infinity that Python's reader would let pass."""

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads((out / "results.json").read_text(), parse_constant=never)
    return found


def figures(out: Path) -> dict[str, Any]:
    """Return what two equal runs agree on; of a round, all but its seconds."""
    found = results(out)
    rounds = [{key: value for key, value in one.items() if key != "seconds"} for one in found["rounds"]]
    return {**{name: found[name] for name in FIGURES}, "rounds": rounds}


def phi(out: Path) -> dict[str, list[Any]]:
    """Return the published weights by name."""
    return {name: tensor.tolist() for name, tensor in load_file(out / "phi.safetensors").items()}


def test_a_run_leaves_everything_that_it_promises(
    table_hospitals: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configuration, results, weights and report: each can be read, and each says the same."""
    out = tmp_path / "out"
    assert command(monkeypatch, arguments(out, table_hospitals(3))) == 0

    config = load(out / "config.toml")
    assert config.training.rounds == 3
    assert load(out / "config.toml").to_toml() == (out / "config.toml").read_text()

    with safe_open(out / "phi.safetensors", "pt") as weights:
        assert weights.metadata()["format"] == "zamenis-phi-2"
        assert from_json(weights.metadata()["config"]) == config
    found = results(out)
    assert (
        sum(tensor.numel() for tensor in load_file(out / "phi.safetensors").values()) == found["parameters"]
    )
    _check_results(found)
    _check_report((out / "report.html").read_text(encoding="utf-8"))


def _check_results(found: dict[str, Any]) -> None:
    """Four algorithms at three sites with K = 0, 1, 5, each under every metric."""
    cells = {(row["algorithm"], row["site"], row["shot"]) for row in found["rows"]}
    assert len(cells) == 4 * 3 * 3
    assert {row["draws"] for row in found["rows"] if row["shot"] == 0} == {1}
    for row in found["rows"]:
        assert row["ci_low"] <= row["ci_high"]
        assert row["draws"] in (1, 3)
    assert {one["reference"] for one in found["differences"]} == {"reptile"}
    assert {one["algorithm"] for one in found["differences"]} == {"local-only", "fedavg", "pooled"}
    assert all(0 <= one["share"] <= 1 and one["shot"] > 0 for one in found["hurt"])
    assert {one["round"] for one in found["rounds"]} == {1, 2, 3}
    assert [one["site"] for one in found["hospitals"]] == ["site-1", "site-2", "site-3"]
    assert [sum(one["patients"]) for one in found["hospitals"]] == [70, 80, 90]
    assert found["command"].startswith("zamenis-simulate run")
    assert found["timing"]["total_s"] > 0


def _check_report(page: str) -> None:
    """Nothing in the page is fetched from anywhere."""
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|<script[^>]+src", page)


def test_the_number_of_workers_decides_speed_alone(
    table_hospitals: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process and two: the same figures and the same weights to the last bit."""
    hospitals = table_hospitals(3)
    for workers in (1, 2):
        assert command(monkeypatch, arguments(tmp_path / str(workers), hospitals, workers=workers)) == 0
    assert figures(tmp_path / "1") == figures(tmp_path / "2")
    assert phi(tmp_path / "1") == phi(tmp_path / "2")
    assert results(tmp_path / "2")["workers"] == 2


def started(out: Path, hospitals: Path, *over: str) -> subprocess.Popen[str]:
    """Return a run in a process of its own, as a person starts one."""
    code = "from simulation.cli import main; main()"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments(out, hospitals, *over)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pressed(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C until the process ends, as a person would, and return what it said."""
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            continue


def test_an_interrupted_run_goes_on_where_it_was(
    table_hospitals: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after a checkpoint says how to go on; what resumes ends as one that was never stopped."""
    hospitals = table_hospitals(3)
    over = ('experiment.algorithms=["reptile"]', 'experiment.held-out=["site-1"]', "training.rounds=100")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    process = started(broken, hospitals, *over)
    while not list(broken.glob("training/*/*/checkpoint.safetensors")) and process.poll() is None:
        time.sleep(0.02)
    told = pressed(process)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert "--resume" in told
    assert not (broken / "results.json").exists()

    assert command(monkeypatch, ["run", "--resume", str(broken), "--workers", "2"]) == 0
    assert command(monkeypatch, arguments(straight, hospitals, *over)) == 0
    assert phi(broken) == phi(straight)
    assert figures(broken) == figures(straight)


def test_a_finished_run_is_resumed_without_computing_anything_again(
    table_hospitals: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checkpoints and answers stay the files they were; the bar of what was finished before is full."""
    out = tmp_path / "out"
    over = ('experiment.algorithms=["reptile", "local-only"]', 'experiment.held-out=["site-1"]')
    assert command(monkeypatch, arguments(out, table_hospitals(3), *over)) == 0
    before, kept = figures(out), _written(out)
    capsys.readouterr()
    assert command(monkeypatch, ["run", "--resume", str(out), "--workers", "1"]) == 0
    assert figures(out) == before
    assert _written(out) == kept
    (bar,) = re.findall(r"Meta-training.* (\d+)/(\d+) ", capsys.readouterr().out)
    assert bar == ("9", "9"), "three trainings of three rounds"


def _written(out: Path) -> dict[Path, int]:
    """Return when each checkpoint and answer was written, in nanoseconds."""
    files = [*out.glob("answers/*"), *out.glob("training/*/*/*")]
    assert files
    return {file: file.stat().st_mtime_ns for file in files}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """Return the one message on stderr of a command that must end with exit code 2."""
    assert command(monkeypatch, words) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("Error ")
    assert told.count("Error") == 1
    assert "Traceback" not in told
    assert "nan" not in told.lower().split()
    return told


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("training.round=3", "training.round is not a known key; did you mean rounds?"),
        ("training.rounds=many", "training.rounds must be a valid integer"),
        ("training.inner-lr=nan", "training.inner-lr must be a finite number"),
        ('experiment.held-out=["sight-1"]', "experiment.held-out names sight-1"),
        ("task.label=outcome", "has no column outcome"),
        ("seed", "must read key=value"),
    ],
)
def test_a_mistake_in_a_setting_is_one_message(
    table_hospitals: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    over: str,
    words: str,
) -> None:
    """Unknown keys, wrong types, hospitals and columns that are not there."""
    hospitals = table_hospitals(2)
    for schema in hospitals.glob("*/schema.toml"):
        schema.write_text(schema.read_text().replace('label = "finding"\n', ""))
    assert words in refused(monkeypatch, capsys, arguments(tmp_path / "out", hospitals, over))


def test_a_folder_that_holds_a_run_is_never_overwritten(
    table_hospitals: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message offers --resume, and the run's configuration stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.toml").write_text("seed = 7\n")
    (tmp_path / "out" / "results.json").write_text("{}")
    told = refused(monkeypatch, capsys, arguments(tmp_path / "out", table_hospitals(2)))
    assert "holds a run already; --resume" in told
    assert (tmp_path / "out" / "config.toml").read_text() == "seed = 7\n"


def test_a_configuration_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a new run and for one to be resumed alike."""
    assert "there is no such file" in refused(monkeypatch, capsys, ["run", str(tmp_path / "none.toml")])
    assert "there is no such file" in refused(
        monkeypatch, capsys, ["run", "--resume", str(tmp_path / "none")]
    )


def test_a_resumed_run_takes_no_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be another run."""
    told = refused(monkeypatch, capsys, ["run", "--resume", str(tmp_path), "--seed", "3"])
    assert "--resume goes on with a run as it is" in told


def empty(hospital: Path) -> None:
    """Take everything out of a hospital."""
    shutil.rmtree(hospital)
    hospital.mkdir()


def without_labels(hospital: Path) -> None:
    """Take a hospital's labels and leave its images."""
    (hospital / "labels.csv").unlink()


def without_images(hospital: Path) -> None:
    """Take a hospital's images and leave its labels."""
    for image in hospital.rglob("*.dcm"):
        image.unlink()


def with_other_labels(hospital: Path) -> None:
    """Leave a hospital labels of images that are not there."""
    labels = hospital / "labels.csv"
    labels.write_text(labels.read_text().replace(",", "9,"))
    labels.write_text(labels.read_text().replace("SOPInstanceUID9,", "SOPInstanceUID,"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty, "site-1: has neither labels.csv (images) nor schema.toml (a table)"),
        (without_labels, "site-1: has neither labels.csv (images) nor schema.toml (a table)"),
        (without_images, "but the folder holds no image"),
        (with_other_labels, "rows in labels.csv match no image"),
    ],
)
def test_a_hospital_that_cannot_take_part_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    words: str,
) -> None:
    """An empty one, images without labels, labels without images, labels of other images."""
    first, _ = write_hospitals(tmp_path / "in", Phantoms(sites=2, patients=4, matrix=32), seed=0)
    spoil(first)
    over = ("model.name=conv4", "data.image-size=16")
    told = refused(monkeypatch, capsys, arguments(tmp_path / "out", tmp_path / "in", *over))
    assert words in told
    assert not (tmp_path / "out" / "results.json").exists()


def numbered(parent: Path, sizes: Mapping[str, int]) -> Path:
    """Write hospitals of so many patients by name."""
    for seed, (name, rows) in enumerate(sizes.items()):
        write_table_hospital(parent / name, seed=seed, rows=rows)
    return parent


def test_a_hospital_too_small_for_episodes_is_left_out_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its reason, in terminal, report, results and log; the run is that of the others alone.

    Hospitals are called 1, 8 and 18, so that one's name stands in another's, and in every count.
    """
    sizes = {"1": 60, "18": 60, "2": 60}
    over = [
        *("training.shot=6", "training.rounds=1", "experiment.shots=[0]"),
        *('experiment.held-out=["1"]', 'experiment.algorithms=["reptile", "pooled"]'),
    ]
    found = {}
    for name, there in (("others", sizes), ("all", {**sizes, "8": 8, "a b": 3})):
        hospitals = numbered(tmp_path / f"in-{name}", there)
        assert command(monkeypatch, arguments(tmp_path / name, hospitals, *over)) == 0
        found[name] = figures(tmp_path / name)
    words = "episodes of 6 patients per class need more classes with so many than are told"
    first, second = found["all"].pop("left_out")
    assert (first["site"], first["shot"], second["site"]) == ("8", None, "a b")
    assert first["reason"].startswith(words)
    assert found["others"].pop("left_out") == []
    assert found["all"] == found["others"]
    assert f"Left out: 8: {words}" in " ".join(capsys.readouterr().out.split())
    for file in ("run.log", "report.html"):
        assert words in (tmp_path / "all" / file).read_text()


def test_classes_and_hospitals_in_any_language_come_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the table through messages between processes into terminal, report, results and phi."""
    sizes = {"Köln": 60, "北京": 60, "Åre": 60, "小": 8}
    hospitals = numbered(tmp_path / "in", sizes)
    for table in hospitals.glob("*/table.csv"):
        text = table.read_text().replace("normal", "unauffällig").replace("nodule", "胸腔积液")
        table.write_text(text, encoding="utf-8")
    over = (
        'task.classes=["unauffällig", "胸腔积液"]',
        'experiment.algorithms=["reptile"]',
        "training.shot=6",
    )
    assert command(monkeypatch, arguments(tmp_path / "out", hospitals, *over, workers=2)) == 0
    told, found = capsys.readouterr().out, results(tmp_path / "out")
    assert all(name in told for name in sizes)
    assert {one["site"] for one in found["hospitals"]} == {"Köln", "北京", "Åre"}
    assert set(found["hospitals"][0]["per_class"]) == {"unauffällig", "胸腔积液"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in (*sizes, "unauffällig", "胸腔积液"))
    with safe_open(tmp_path / "out" / "phi.safetensors", framework="pt") as file:
        assert from_json(file.metadata()["config"]).task.classes == ("unauffällig", "胸腔积液")


def test_hospitals_that_are_all_too_small_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names each with its reason, each once, also one whose name is a number within the reason."""
    hospitals = numbered(tmp_path / "in", {"1": 60, "6": 12, "18": 6})
    told = refused(monkeypatch, capsys, arguments(tmp_path / "out", hospitals, "training.shot=6"))
    assert "leaving one hospital out needs at least two; there is 1. Left out: " in told
    assert told.count(" 6: episodes of 6 patients") == 1
    assert told.count(" 18: All 6 patients are on the test side: too few to split") == 1
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_hospitals_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    """Whether it is empty or not there at all."""
    if there:
        (tmp_path / "in").mkdir()
    told = refused(monkeypatch, capsys, arguments(tmp_path / "out", tmp_path / "in"))
    assert "holds no hospital" in told


def test_no_patient_is_named_in_anything_that_a_run_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Phantom hospitals from DICOM to report: PatientID and PatientName stand in the DICOM files alone."""
    out = tmp_path / "out"
    over = (
        'data.hospitals=""',
        "phantoms.sites=3",
        "phantoms.patients=24",
        "phantoms.matrix=32",
        "data.image-size=16",
        "model.name=conv4",
        "training.rounds=2",
        "experiment.shots=[0, 1]",
        'experiment.algorithms=["reptile", "local-only"]',
    )
    words = [part for key in (*SMALL, *over) for part in ("--set", key)]
    assert command(monkeypatch, ["run", "--out", str(out), "--workers", "2", *words]) == 0
    told = "".join(capfd.readouterr())
    assert results(out)["rows"]

    images = list(out.rglob("*.dcm"))
    headers = [pydicom.dcmread(image, stop_before_pixels=True) for image in images]
    names = {str(header[word].value) for header in headers for word in ("PatientID", "PatientName")}
    assert len(names) > 3 * 24
    others = [file for file in out.rglob("*") if file.is_file() and file not in set(images)]
    assert len(others) > 10
    for file in others:
        found = file.read_bytes()
        assert not any(name.encode() in found or name in file.name for name in names), file.name
    assert not any(name in told for name in names)


def test_a_large_network_runs_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-18 with batch normalisation by a hospital's own statistics: finite weights that have moved."""
    out = tmp_path / "out"
    over = (
        'data.hospitals=""',
        "phantoms.sites=2",
        "phantoms.patients=60",
        "phantoms.matrix=64",
        "data.image-size=64",
        "model.name=resnet18",
        "model.norm=batch",
        "training.normalisation=recompute",
        "training.rounds=1",
        "training.inner-steps=2",
        "experiment.shots=[0]",
        'experiment.held-out=["site-1"]',
        'experiment.algorithms=["reptile"]',
    )
    words = [part for key in (*SMALL, *over) for part in ("--set", key)]
    assert command(monkeypatch, ["run", "--out", str(out), "--workers", "1", *words]) == 0
    trained = load_file(out / "phi.safetensors")
    initial = shared_weights(load(out / "config.toml"), "reptile", (1, 64, 64))
    assert results(out)["rows"]
    assert trained.keys() == initial.keys()
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert not any(torch.equal(tensor, initial[name]) for name, tensor in trained.items())
