"""Registering folders: where the node keeps what is its own of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.home import Home, Keys, Registered
from client.labels import class_values
from client.registration import census_of, forget, register
from common.errors import ConfigError, DataError
from tests.client.dicom_files import write_hospital
from tests.client.test_home import SETTINGS
from tests.conftest import write_table_hospital


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a new node's folder."""
    return Home.make(tmp_path / "node", SETTINGS, Keys.make(), ca=b"certificate", peers={}, policy="")


def fresh(folder: Path, seed: int = 1) -> Path:
    """Write a hospital's table in which nothing of ours lies."""
    shutil.rmtree(write_table_hospital(folder, seed=seed) / ".zamenis")
    return folder


def counted(entry: Registered) -> int:
    """Return how many cases a registration found."""
    census = census_of(entry)
    assert census is not None
    return census.accepted


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_not_written_to(home: Home, tmp_path: Path) -> None:
    """Secret and cache lie in the node's own folder, in one for each folder of data."""
    archives = [fresh(tmp_path / name, seed) for seed, name in ((1, "a"), (2, "b"))]
    before = [contents(archive) for archive in archives]
    states = []
    for archive in archives:
        done = register(Home.load(home.directory), archive, label="finding").registered
        states.append(Path(done.state))
        assert (states[-1] / "site.key").stat().st_mode & 0o777 == 0o600
        assert counted(done) == 80
    assert [contents(archive) for archive in archives] == before
    assert states[0] != states[1]
    assert {state.parent for state in states} == {home.state / "data"}


def test_a_folder_keeps_its_secret(home: Home, tmp_path: Path) -> None:
    """One of its own is used; one that was given is found again: patients stay split as they are."""
    own = write_table_hospital(tmp_path / "own", seed=3)
    assert register(home, own, label="finding").registered.state == str(own / ".zamenis")
    given, elsewhere = fresh(tmp_path / "given"), tmp_path / "elsewhere"
    register(Home.load(home.directory), given, label="finding", state=elsewhere)
    again = register(Home.load(home.directory), given, label="finding", classes=("nodule", "normal"))
    assert again.registered.state == str(elsewhere)


def test_registrations_at_once_meet_one_after_the_other(home: Home, tmp_path: Path) -> None:
    """Four commands that all began with an empty node: none is lost, and none comes back when forgotten."""
    archives = [fresh(tmp_path / name, seed) for seed, name in enumerate("abcd")]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda archive: register(home, archive, label="finding"), archives))
    now = Home.load(home.directory)
    assert sorted(one.folder for one in now.settings.data) == [str(archive) for archive in archives]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda archive: forget(now, archive), archives[:2]))
    left = Home.load(home.directory).settings.data
    assert sorted(one.folder for one in left) == [str(archive) for archive in archives[2:]]


def test_a_folder_is_counted_once_whatever_becomes_of_it(home: Home, tmp_path: Path) -> None:
    """`data` reads no file again: a folder that is gone hides neither its own counts nor the others'."""
    archives = [fresh(tmp_path / name, seed) for seed, name in enumerate("ab")]
    for archive in archives:
        register(home, archive, label="finding")
    shutil.rmtree(archives[0])
    shown = CliRunner().invoke(app, ["data", "--dir", str(home.directory)])
    assert shown.exit_code == 0
    assert shown.output.count("80") == 4
    assert (
        f"labels are refused:\n    {archives[0]}\nMount them again, or zamenis-hospital forget"
        in shown.output
    )
    assert f"not there      {archives[0]}\n" in run(home, "status")
    with pytest.raises(DataError, match=rf"{archives[0]}: is registered .* is not there.*forget"):
        register(home, archives[1], label="finding")
    for entry in Home.load(home.directory).settings.data:
        assert all(path.stat().st_mode & 0o077 == 0 for path in Path(entry.state).rglob("*"))
        shutil.rmtree(entry.state)
    assert "register again" in CliRunner().invoke(app, ["data", "--dir", str(home.directory)]).output


def test_what_is_no_hospitals_folder_is_told(home: Home, tmp_path: Path) -> None:
    """A file of it, a folder of hospitals, or nothing; what is missing in which."""
    archive = fresh(tmp_path / "archives" / "a")
    for folder, told in (
        (archive / "table.csv", "table.csv: is a file. Name the folder"),
        (tmp_path / "archives", "archives: has neither labels.csv"),
        (tmp_path / "nowhere", "nowhere: there is no such folder"),
    ):
        with pytest.raises(DataError, match=told):
            register(home, folder, label="finding")


def test_two_folders_keep_no_state_together(home: Home, tmp_path: Path) -> None:
    """Else each would be listed with the other's counts, and lose its cache and quarantine to it."""
    first, second = (fresh(tmp_path / name, seed) for seed, name in ((1, "a"), (2, "b")))
    register(home, first, label="finding", state=tmp_path / "state")
    with pytest.raises(ConfigError, match=rf"--state {tmp_path}/state: is kept for {first}\. Name another"):
        register(Home.load(home.directory), second, label="finding", state=tmp_path / "state")
    again = register(Home.load(home.directory), first, label="finding", state=tmp_path / "state")
    assert counted(again.registered) == 80
    assert len(Home.load(home.directory).settings.data) == 1


def test_many_folders_with_long_names_are_listed_in_80_columns(home: Home, tmp_path: Path) -> None:
    """Counts stand in columns; every class and every folder can be read whole."""
    classes = [f"adenocarcinoma of kind {number}" for number in range(8)]
    archives = [say(fresh(tmp_path / f"{'an archive of ' * 6}{seed}", seed), classes) for seed in range(5)]
    for archive in archives:
        register(home, archive, label="finding")
    lines = run(home, "data").splitlines()
    assert lines[0] == "label    cases  patients  left out  used  waiting  silent"
    assert lines[1].split()[:3] == ["finding", "80", "80"]
    folders = [f"    {archive}" for archive in archives]
    assert [line for line in lines if line in folders] == folders
    assert [line for line in lines if len(line) > 80 and line not in folders] == []
    counts = ", ".join(f"{name} 10" for name in classes)
    assert " ".join(" ".join(lines).split()).count(counts) == len(archives)


def test_forgetting_a_folder_tells_what_is_left_without_it(home: Home, tmp_path: Path) -> None:
    """It is done, and what is left of the label cannot be summed: that is a note, and no failure."""
    whole, few = fresh(tmp_path / "whole"), write_table_hospital(tmp_path / "few", seed=2, rows=12)
    for archive in (whole, few):
        register(home, archive, label="finding")
    done = CliRunner().invoke(app, ["forget", str(whole), "--dir", str(home.directory)])
    assert done.exit_code == 0
    assert "is not used any more" in done.output
    assert "finding is answered with nothing now" in " ".join(done.output.split())
    assert [one.folder for one in Home.load(home.directory).settings.data] == [str(few)]


def say(folder: Path, values: Sequence[str]) -> Path:
    """Let a hospital's rows have these findings in turn."""
    header, *rows = (folder / "table.csv").read_text(encoding="utf-8").splitlines()
    said = [f"{row.rsplit(',', 1)[0]},{values[place % len(values)]}" for place, row in enumerate(rows)]
    (folder / "table.csv").write_text("\n".join([header, *said]) + "\n", encoding="utf-8")
    return folder


def run(home: Home, *words: str) -> str:
    """Return what a command prints."""
    return CliRunner().invoke(app, [*words, "--dir", str(home.directory)]).output


@pytest.mark.parametrize("classes", [("unauffällig", "Größe verändert"), ("正常", "胸腔积液")])
def test_classes_in_any_language_are_registered_and_shown(
    home: Home, tmp_path: Path, classes: tuple[str, str]
) -> None:
    """From the table to the node's settings, and from there to the terminal."""
    archive = say(fresh(tmp_path / "a"), classes)
    named = ["--classes", "\uff0c".join(classes)] if classes[0].isalpha() and len(classes[0]) == 2 else []
    shown = run(home, "register", str(archive), "--label", "finding", *named)
    assert all(f"{name} 40" in shown for name in classes)
    (entry,) = Home.load(home.directory).settings.data
    assert entry.classes == (classes if named else tuple(sorted(classes)))
    header, row, counts, *_ = run(home, "data").splitlines()
    assert row.index("80") == header.index("cases")
    assert counts == f"    {', '.join(f'{name} 40' for name in entry.classes)}"


def test_what_was_left_out_is_told_with_the_file_that_says_why(home: Home, tmp_path: Path) -> None:
    """Its whole path on a line of its own, and also where too few patients are left."""
    archive = say(fresh(tmp_path / "a"), ("normal", "nodule", "", "?"))
    given = ("register", str(archive), "--label", "finding")
    *_, path = run(home, *given).splitlines()
    (entry,) = Home.load(home.directory).settings.data
    assert path == f"  {Path(entry.state) / 'quarantine.csv'} tells each remedy."
    say(archive, ("normal", "nodule", *[""] * 8))  # 16 patients, and each side needs 10
    with pytest.raises(DataError, match=r"Left out are 64; .*quarantine\.csv tells each remedy"):
        register(Home.load(home.directory), archive, label="finding")
    say(archive, ("", "perhaps"))
    with pytest.raises(DataError, match=r"no row's finding is one of .*quarantine\.csv tells each remedy"):
        register(Home.load(home.directory), archive, label="finding")


def test_values_that_differ_by_case_alone_are_no_classes(home: Home, tmp_path: Path) -> None:
    """They are named, and nothing is registered; with --classes the rows of another spelling are left out."""
    archive = say(fresh(tmp_path / "a"), ("normal", "nodule", "Nodule"))
    with pytest.raises(DataError, match='"Nodule" and "nodule", which differ by case'):
        register(home, archive, label="finding")
    assert Home.load(home.directory).settings.data == ()
    shown = run(home, "register", str(archive), "--label", "finding", "--classes", "normal,nodule")
    assert "26 rows are left out because their finding differs from nodule by case" in shown
    numbers = say(fresh(tmp_path / "b"), ("1", "0", "1.0"))
    assert class_values(numbers, None, "finding") == ("0", "1")


def test_a_number_is_registered_as_one(home: Home, tmp_path: Path) -> None:
    """It has no classes; the same column can be registered for one task at a time."""
    archive = fresh(tmp_path / "a")
    (archive / "schema.toml").write_text('numeric = ["a", "b", "c"]\n')
    done = register(home, archive, label="d", kind="regression")
    assert (done.registered.kind, done.registered.classes) == ("regression", ())
    assert done.census.per_class == {}
    assert counted(Home.load(home.directory).settings.data[0]) == 80
    with pytest.raises(ConfigError, match="classes mean nothing to a regression"):
        register(home, archive, label="d", kind="regression", classes=("a", "b"))


def test_classes_stay_as_they_were_registered(home: Home, tmp_path: Path) -> None:
    """The second is the positive one, so that registering anew without their names must not turn them."""
    archive = fresh(tmp_path / "a")
    for named in (("nodule", "normal"), ("normal", "nodule")):
        for classes in (named, ()):
            done = register(Home.load(home.directory), archive, label="finding", classes=classes)
            assert done.registered.classes == named


def test_a_share_of_nobody_is_refused(home: Home, tmp_path: Path) -> None:
    """It is not taken for one that was left out."""
    with pytest.raises(ConfigError, match="adaptation-share"):
        register(home, fresh(tmp_path / "a"), label="finding", share=0.0)


def test_a_damaged_policy_is_told_before_a_node_is_started(home: Home, tmp_path: Path) -> None:
    """By `start`, whose process would end at once, and by `status` of a node that is stopped."""
    home.policy.write_text('min-patients = "ten"\n', encoding="utf-8")
    started = CliRunner().invoke(app, ["start", "--as-root", "--dir", str(home.directory)])
    assert isinstance(started.exception, ConfigError)
    assert "policy.toml: min-patients must be a valid integer" in str(started.exception)
    assert "policy         policy.toml: min-patients must be a valid integer" in run(home, "status")
    assert list(home.logs.iterdir()) == []


def test_a_damaged_policy_ends_a_registration_before_anything_is_read(home: Home, tmp_path: Path) -> None:
    """A long reading would be for nothing; nothing is registered, and no state is made."""
    home.policy.write_text('min-patients = "ten"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"policy\.toml: min-patients"):
        register(home, fresh(tmp_path / "a"), label="finding")
    assert not (home.state / "data").exists()


@pytest.mark.parametrize(
    "link", ["rows/rows.lock", "data/*/cache/*/fresh.jsonl", "data/*/cache/*/fresh.pixels"]
)
def test_a_link_of_a_workers_empties_no_file_of_the_nodes(home: Home, tmp_path: Path, link: str) -> None:
    """A worker that was taken over writes where its state is; `register` has all rights of the operator."""
    folder = tmp_path / "archive"
    write_hospital(folder, 60)
    register(home, folder, label="finding")
    key = next(path for path in home.directory.rglob("*identity*") if path.is_file())
    before = key.read_bytes()
    (place,) = home.state.glob(link)
    place.unlink()
    place.symlink_to(key)
    with pytest.raises(DataError, match="is a link, where a file of this node's own should be"):
        register(Home.load(home.directory), folder, label="finding")
    assert key.read_bytes() == before
    place.unlink()
    assert register(Home.load(home.directory), folder, label="finding").use.groups
