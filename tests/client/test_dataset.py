"""A hospital of DICOM files: what is opened, remembered, split and told, and what never leaves."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from client import split, survey
from client.cache import MOST_SIZES
from client.dataset import Hospital, Rules, open_folders, open_hospital
from client.dicom import read_image
from client.folder import Source
from client.image_child import Opened
from client.split import SiteKeys, fraction, keyed_hash, open_keys, share_patients
from common.errors import DataError
from common.sections import Data, Task
from tests.client.dicom_files import write, write_hospital
from tests.conftest import write_table_hospital

DATA, TASK = Data(image_size=8), Task(label="finding", classes=("normal", "nodule"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a hospital of 12 patients with two images each."""
    write_hospital(tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Opened]:
    """Return a list that grows by every instance whose pixels are decoded."""
    seen: list[Opened] = []
    ask = Opened.ask

    def counted(self: Opened, *, size: int, channels: int) -> Callable[[], torch.Tensor]:
        seen.append(self)
        return ask(self, size=size, channels=channels)

    monkeypatch.setattr(Opened, "ask", counted)
    return seen


def equal(one: Hospital, other: Hospital) -> bool:
    """Return whether two hospitals hold the same cases in the same order."""
    sides = ((one.adaptation, other.adaptation), (one.test, other.test))
    return all(
        torch.equal(a.inputs, b.inputs)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.patients, b.patients)
        for a, b in sides
    )


@pytest.mark.parametrize("count", [2, 5])
def test_how_many_images_are_read_at_once_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Nor which of copies that are read together is the case: the first whose pixels are there."""
    rows = (folder / "labels.csv").read_text()
    write(folder / "copy/1.dcm", np.full((12, 12), 7, np.uint16), PatientID="Secret^0")
    whole = (folder / "copy/1.dcm").read_bytes()
    for number in (2, 3):
        (folder / f"copy/{number}.dcm").write_bytes(whole)
    (folder / "copy/1.dcm").write_bytes(whole[:-9])
    rows += "".join(f"copy/{number}.dcm,normal\n" for number in (1, 2, 3))
    (folder / "labels.csv").write_text(rows)
    found = []
    for at_once, state in ((1, tmp_path / "one"), (count, tmp_path / "several")):
        monkeypatch.setattr("client.image_child.cores", lambda at_once=at_once: at_once)
        state.mkdir()
        (state / "site.key").write_bytes(bytes(range(32)))
        found.append((open_hospital(folder, DATA, TASK, state=state), (state / "quarantine.csv").read_text()))
    (one, left_out), (several, left_out_of_several) = found
    assert equal(one, several)
    assert left_out == left_out_of_several
    assert [line.split(",")[:2] for line in left_out.splitlines() if "copy" in line] == [
        ["copy/1.dcm", "truncated"],
        ["copy/3.dcm", "duplicate"],
    ]


def test_every_image_is_there_once_and_split_by_patient(folder: Path) -> None:
    """All 24 images are on one side each, no patient on both, and pixels are those of `read_image`."""
    hospital = open_hospital(folder, DATA, TASK)
    assert hospital.name == "site"
    assert len(hospital.adaptation) + len(hospital.test) == hospital.census.accepted == 24
    assert hospital.census.per_class == {"normal": 12, "nodule": 12}
    assert not set(hospital.adaptation.patients.tolist()) & set(hospital.test.patients.tolist())
    expected = {
        read_image(path, size=8, channels=1).pixels.numpy().tobytes() for path in folder.rglob("*.dcm")
    }
    cases = torch.cat([hospital.adaptation.inputs, hospital.test.inputs])
    assert {case.numpy().tobytes() for case in cases} == expected


def test_a_file_that_is_gone_while_it_is_read_is_unreadable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels may be there already; it is left out with a reason, and the pass goes on."""

    def content_of(keys: SiteKeys, path: Path) -> str:
        if path.name == "p3i1.dcm":
            path.unlink()
        return split.content_of(keys, path)

    monkeypatch.setattr(survey, "content_of", content_of)
    census = open_hospital(folder, DATA, TASK).census
    assert (census.accepted, census.refused) == (23, {"unreadable": 1})


def test_opening_again_decodes_nothing_and_gives_the_same(folder: Path, decoded: list[Opened]) -> None:
    """The second opening reads no pixel, and both sides are contiguous views of one mapping."""
    first = open_hospital(folder, DATA, TASK)
    assert len(decoded) == 24
    second = open_hospital(folder, DATA, TASK)
    assert len(decoded) == 24
    assert equal(first, second)
    assert second.adaptation.inputs.is_contiguous()
    storages = {side.inputs.untyped_storage().data_ptr() for side in (second.adaptation, second.test)}
    assert len(storages) == 1


def test_only_new_and_changed_files_are_decoded(folder: Path, decoded: list[Opened]) -> None:
    """A changed file is read again, a new one too, and a deleted one is gone."""
    open_hospital(folder, DATA, TASK)
    decoded.clear()
    changed, gone = sorted(folder.rglob("*.dcm"))[:2]
    write(changed, np.eye(10, dtype=np.uint16), PatientID="Secret^0")
    gone.unlink()
    write(folder / "new.dcm", np.eye(9, dtype=np.uint16), PatientID="Secret^0")
    with (folder / "labels.csv").open("a") as file:
        file.write("new.dcm,normal\n")
    again = open_hospital(folder, DATA, TASK)
    assert len(decoded) == 2
    assert again.census.accepted == 24
    assert "1 of 25 rows in labels.csv match no image" in again.census.warnings
    (folder / ".zamenis/cache/1x8x8/index.json").unlink()
    assert equal(again, open_hospital(folder, DATA, TASK))


def test_labels_change_without_decoding_and_come_back(folder: Path, decoded: list[Opened]) -> None:
    """Taking labels away and giving them back changes the cases, not what is decoded."""
    before = open_hospital(folder, DATA, TASK)
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(
        text.replace("p3i0.dcm,nodule", "p3i0.dcm,normal").replace("p5i1", "absent")
    )
    between = open_hospital(folder, DATA, TASK)
    assert between.census.per_class == {"normal": 13, "nodule": 10}
    assert between.census.refused == {"missing label": 1}
    (folder / "labels.csv").write_text(text)
    assert equal(before, open_hospital(folder, DATA, TASK))
    assert len(decoded) == 24


def test_unlabelled_images_are_decoded_once_they_are_labelled(folder: Path, decoded: list[Opened]) -> None:
    """A file without a label costs its header only."""
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("p5i1", "absent"))
    open_hospital(folder, DATA, TASK)
    assert len(decoded) == 23
    (folder / "labels.csv").write_text(text)
    assert open_hospital(folder, DATA, TASK).census.accepted == 24
    assert len(decoded) == 24


def test_order_and_split_depend_on_the_secret_alone(folder: Path, tmp_path: Path) -> None:
    """The same secret gives the same cases elsewhere, and its fractions are uniform."""
    first = open_hospital(folder, DATA, TASK)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/site.key").write_bytes((folder / ".zamenis/site.key").read_bytes())
    assert equal(first, open_hospital(folder, DATA, TASK, state=tmp_path / "state"))
    keys = open_keys(tmp_path / "state")
    places = [fraction(keys.split, f"Secret^{patient}") for patient in range(4000)]
    # Uniform: mean 1/2, deviation of the mean sqrt(1/12/4000); five of them.
    assert abs(np.mean(places) - 0.5) < 5 * (1 / 12 / 4000) ** 0.5
    learned = {f"Secret^{patient}" for patient in range(12) if places[patient] < 0.5}
    assert len(set(first.adaptation.patients.tolist())) == len(learned)


def test_the_share_only_adds_patients(tmp_path: Path) -> None:
    """With a larger share, every patient who was learned from still is."""
    state = tmp_path / "state"
    patients = [str(patient) for patient in range(200)]
    places = np.array([fraction(open_keys(state).split, patient) for patient in patients])
    assert set(np.flatnonzero(places < 0.3)) < set(np.flatnonzero(places < 0.6))


def test_a_split_column_decides_for_the_whole_patient(folder: Path) -> None:
    """One image of a patient marked test takes the other along."""
    lines = (folder / "labels.csv").read_text().splitlines()
    sides = {1: "test", **dict.fromkeys(range(3, 25), "adaptation")}
    rows = [f"{line},{sides.get(number, '')}" for number, line in enumerate(lines)]
    (folder / "labels.csv").write_text("\n".join([lines[0] + ",split", *rows[1:]]))
    assert len(open_hospital(folder, DATA, TASK).test) == 2


def test_without_patient_ids_each_study_is_a_patient(tmp_path: Path) -> None:
    """Two images of one study stay together; studies are told apart."""
    lines = ["StudyInstanceUID,finding"]
    for study in range(20):
        StudyInstanceUID = f"1.2.{study}"
        lines.append(f"{StudyInstanceUID},{'nodule' if study % 2 else 'normal'}")
        for image in range(2):
            write(
                tmp_path / f"{study}-{image}", np.eye(8, dtype=np.uint16), StudyInstanceUID=StudyInstanceUID
            )
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    hospital = open_hospital(tmp_path, DATA, TASK)
    assert hospital.census.patients == 20
    assert hospital.census.accepted == 40


def test_each_bad_file_is_counted_and_none_stops_the_others(folder: Path) -> None:
    """Text, a copy, an unlabelled, a mislabelled and a truncated file: five reasons, five lines, 24 cases."""
    whole = next(folder.rglob("*.dcm")).read_bytes()
    (folder / "zz-copy.dcm").write_bytes(whole)
    (folder / "readme.txt").write_text("hello")
    write(folder / "unlabelled.dcm", np.eye(8, dtype=np.uint16))
    write(folder / "odd.dcm", np.eye(8, dtype=np.uint16))
    write(folder / "torn.dcm", np.eye(8, dtype=np.uint16))
    torn = (folder / "torn.dcm").read_bytes()
    (folder / "torn.dcm").write_bytes(torn[:-20])
    with (folder / "labels.csv").open("a") as file:
        file.write("odd.dcm,perhaps\ntorn.dcm,normal\nzz-copy.dcm,normal\n")
    for _ in range(2):
        census = open_hospital(folder, DATA, TASK).census
        assert census.accepted == 24
        assert census.refused == {
            "duplicate": 1,
            "missing label": 1,
            "not DICOM": 1,
            "truncated": 1,
            "unknown class": 1,
        }
        assert len((folder / ".zamenis/quarantine.csv").read_text().splitlines()) == 6


def test_nothing_kept_or_told_identifies_a_patient(folder: Path) -> None:
    """No PatientID, UID or file name stands in the cache or the census."""
    hospital = open_hospital(folder, DATA, TASK)
    cache = b"".join(path.read_bytes() for path in (folder / ".zamenis/cache").rglob("*") if path.is_file())
    assert not re.search(rb"Secret|\.dcm|p0i0|1\.2\.826", cache)
    assert "Secret" not in str(hospital.census)
    assert (folder / ".zamenis/site.key").stat().st_mode & 0o777 == 0o600
    assert repr(open_keys(folder / ".zamenis")) == "SiteKeys()"


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"format":1}', b"[]", b'{"format":1,"files":{"a":[1]},"rows":0}']
)
def test_a_damaged_index_is_rebuilt(folder: Path, damage: bytes) -> None:
    """Whatever the index has become, the hospital opens as before."""
    first = open_hospital(folder, DATA, TASK)
    (folder / ".zamenis/cache/1x8x8/index.json").write_bytes(damage)
    assert equal(first, open_hospital(folder, DATA, TASK))


def test_only_the_sizes_used_last_are_kept(folder: Path) -> None:
    """A coordinator that asks for ever other sizes fills no disk; one that is gone is made anew."""
    cache = folder / ".zamenis" / "cache"
    sizes = range(8, 8 + MOST_SIZES + 3)
    first = open_hospital(folder, Data(image_size=8), TASK)
    for age, size in enumerate(sizes):
        open_hospital(folder, Data(image_size=size), TASK)
        os.utime(cache / f"1x{size}x{size}", (age, age))
    kept = {path.name for path in cache.iterdir()}
    assert kept == {f"1x{size}x{size}" for size in sizes[-MOST_SIZES:]}
    assert torch.equal(
        open_hospital(folder, Data(image_size=8), TASK).adaptation.inputs, first.adaptation.inputs
    )


def test_a_damaged_array_is_rebuilt(folder: Path) -> None:
    """A cut or missing array is no reason to fail."""
    first = open_hospital(folder, DATA, TASK)
    for keep in (100, 1000):
        array = next((folder / ".zamenis/cache/1x8x8").glob("*.npy"))
        content = array.read_bytes()
        array.unlink()  # an open hospital keeps its own mapping; cutting that one short would crash it
        array.write_bytes(content[:keep])
        assert equal(first, open_hospital(folder, DATA, TASK))
    next((folder / ".zamenis/cache/1x8x8").glob("*.npy")).unlink()
    assert equal(first, open_hospital(folder, DATA, TASK))


def _counts(folder: str) -> tuple[int, float]:
    hospital = open_hospital(Path(folder), DATA, TASK)
    return hospital.census.accepted, float(hospital.test.inputs.sum())


def test_processes_may_open_a_new_hospital_at_once(folder: Path) -> None:
    """Two processes that start together agree, also on the secret."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_counts, [str(folder)] * 4))
    assert set(results) == {_counts(str(folder))}


def test_progress_is_told_per_file(folder: Path) -> None:
    """Progress counts every file once, up to all of them."""
    told: list[tuple[int, int]] = []
    open_hospital(folder, DATA, TASK, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 24) for done in range(1, 25)]


def sources(tmp_path: Path) -> list[Source]:
    """Write two folders of the same twelve PatientIDs, and return where they are.

    With keys of their own under which patients are on both sides.
    """
    for seed, name in enumerate(("north", "south")):
        write_hospital(tmp_path / name)
        (tmp_path / f"state-{name}").mkdir()
        (tmp_path / f"state-{name}" / "site.key").write_bytes(bytes([seed + 1]) * 32)
    return [Source(tmp_path / name, tmp_path / f"state-{name}") for name in ("north", "south")]


def test_folders_of_hospitals_that_share_no_key_keep_their_patients_apart(tmp_path: Path) -> None:
    """Two folders as one hospital, as a pool has them: counts add up, no two patients share a number."""
    both = open_folders("city", sources(tmp_path), DATA, TASK, Rules())
    assert both.name == "city"
    assert both.census.accepted == len(both.adaptation) + len(both.test) == 48
    assert both.census.per_class == {"normal": 24, "nodule": 24}
    numbers = set(both.adaptation.patients.tolist()) | set(both.test.patients.tolist())
    assert numbers == set(range(both.census.patients)) == set(range(24))


def test_tables_of_one_hospital_have_the_same_columns(tmp_path: Path) -> None:
    """In another order the same number would mean something else."""
    places = []
    for seed, name in enumerate(("north", "south")):
        write_table_hospital(tmp_path / name, seed=seed)
        places.append(Source(tmp_path / name, tmp_path / name / ".zamenis"))
    assert open_folders("city", places, DATA, TASK, Rules()).census.accepted == 160
    schema = tmp_path / "south/schema.toml"
    schema.write_text(schema.read_text().replace('"a", "b"', '"b", "a"'))
    with pytest.raises(DataError, match=r"column 1 is a at one folder, and b at another; write schema\.toml"):
        open_folders("city", places, DATA, TASK, Rules())


def test_a_patient_in_two_folders_of_a_node_is_one_patient(tmp_path: Path) -> None:
    """The node's secret names patients alike; who is learned from in one folder is tested on in none."""
    places = sources(tmp_path)
    for place in places:
        share_patients(tmp_path / "node", place.state)
    both = open_folders("city", places, DATA, TASK, Rules())
    assert both.census.accepted == 48
    assert both.census.patients == 12
    assert not set(both.adaptation.patients.tolist()) & set(both.test.patients.tolist())


def test_a_hospital_that_joined_anew_takes_its_folders_over(tmp_path: Path) -> None:
    """A node without a secret takes over that of a folder it finds, and its patients stay who they were.

    One that has folders of its own does not: two secrets would make two patients of one.
    """
    places = sources(tmp_path)
    for place in places:
        share_patients(tmp_path / "node", place.state)
    before = open_folders("city", places, DATA, TASK, Rules())
    for place in places:
        share_patients(tmp_path / "joined anew", place.state)
    after = open_folders("city", places, DATA, TASK, Rules())
    assert after.digest == before.digest
    share_patients(tmp_path / "another", tmp_path / "state-west")
    with pytest.raises(DataError, match="belongs to another node"):
        share_patients(tmp_path / "another", places[0].state)


def test_one_class_is_a_warning(folder: Path) -> None:
    """A hospital that only has one class can still serve, and is told so."""
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("nodule", "normal"))
    assert open_hospital(folder, DATA, TASK).census.warnings == (
        "all adaptation cases are of class normal",
        "all test cases are of class normal",
        "no row's finding is nodule; see whether that class is spelt so there",
    )


def test_what_cannot_be_a_hospital_is_told_in_one_message(tmp_path: Path) -> None:
    """Missing, unlabelled, empty, mismatched and unusable folders each have their own message with counts."""
    with pytest.raises(DataError, match="no such folder"):
        open_hospital(tmp_path / "absent", DATA, TASK)
    with pytest.raises(DataError, match=r"neither labels\.csv"):
        open_hospital(tmp_path, DATA, TASK)
    (tmp_path / "labels.csv").write_text("path,finding\na.dcm,normal\nb.dcm,nodule\n")
    with pytest.raises(DataError, match="has 2 rows, but the folder holds no image"):
        open_hospital(tmp_path, DATA, TASK)
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no file can be used \(1 not DICOM\)"):
        open_hospital(tmp_path, DATA, TASK)
    write(tmp_path / "other.dcm", np.eye(8, dtype=np.uint16))
    with pytest.raises(DataError, match=r"none of 1 images has a label .*: 2 of 2 rows"):
        open_hospital(tmp_path, DATA, TASK)
    write(tmp_path / "a.dcm", np.eye(8, dtype=np.uint16), PatientID="only")
    with pytest.raises(DataError, match=r"All 1 patients are on the \w+ side: too few"):
        open_hospital(tmp_path, DATA, TASK)


def test_a_damaged_secret_is_never_replaced(folder: Path) -> None:
    """Another secret would mix learned and tested patients: the folder is refused instead."""
    (folder / ".zamenis").mkdir()
    (folder / ".zamenis/site.key").write_bytes(os.urandom(5))
    with pytest.raises(DataError, match="must hold 32 bytes and holds 5"):
        open_hospital(folder, DATA, TASK)


def test_purposes_have_keys_of_their_own(tmp_path: Path) -> None:
    """One secret, three keys; the same text has another name under each."""
    keys = open_keys(tmp_path)
    assert len({keyed_hash(key, "x") for key in (keys.split, keys.patient, keys.file)}) == 3
    assert open_keys(tmp_path) == keys
