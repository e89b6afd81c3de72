"""What is summed belongs to the hospital: attacks that move rows or count few, by the node's own path."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from client.classes import lesson
from client.home import Home
from client.node import config_of
from client.registration import forget, register
from client.site import Node
from client.site import hospital_of as rows_asked
from common import columns, wire
from common.config import Config
from common.errors import ConfigError, DataError
from tests.client.dicom_files import write_hospital
from tests.client.registered import ask, asked, delta, new_home, write_rows
from tests.conftest import write_table_hospital

SHARES = [f"data.adaptation-share={share:.3f}" for share in np.linspace(0.4, 0.6, 21)]
FEDERATION = "data.standardise=federation"
THREE = ("normal", "nodule", "rare")


def table(count: int, *, seed: int = 1, first: int = 0, finding: str = "") -> list[list[object]]:
    """Return rows of `count` patients, every other one a nodule unless all have the same finding."""
    chance = np.random.default_rng(seed)
    return [
        [f"p{first + row}", *chance.normal(size=4).round(6), finding or ("normal", "nodule")[row % 2]]
        for row in range(count)
    ]


def hospital_of(tmp_path: Path, rows: list[list[object]], classes: tuple[str, ...] = ()) -> Home:
    """Return a node that has registered a table of these rows."""
    home = new_home(tmp_path / "node")
    register(home, write_rows(tmp_path / "data", rows), label="finding", classes=classes)
    return Home.load(home.directory)


def rows_in(reply: Message) -> int:
    """Return how many rows a sum over columns is over: the first column's count, in digits of 7 bits."""
    digits = delta(reply)[: columns.DIGITS[0]].tolist()
    return int(sum(digit * 2 ** (columns.DIGIT * place) for place, digit in enumerate(digits)))


def told(home: Home, *over: str) -> wire.Description:
    """Return the answer to `describe`."""
    return wire.read_description(ask(home, "query.describe", asked(*over)))


def test_no_share_moves_a_patient(tmp_path: Path) -> None:
    """Neither does the digest tell where the next patient lies, nor do two updates differ by one."""
    home = new_home(tmp_path / "node")
    register(home, write_table_hospital(tmp_path / "data", seed=1, rows=120), label="finding")
    assert len({told(home, share).digest for share in SHARES}) == 1
    updates = [delta(ask(home, "train", asked(share), server_round=1)) for share in SHARES[:4]]
    assert all((one == updates[0]).all() for one in updates)


def test_no_class_is_counted_by_differences(tmp_path: Path) -> None:
    """Three patients have a rare finding; every subset of the classes is told the same, and never three."""
    home = hospital_of(tmp_path, [*table(60), *table(3, first=60, seed=2, finding="rare")], THREE)
    subsets = ("['normal','nodule']", "['normal','nodule','rare']", "['normal','rare']")
    censuses = [told(home, f"task.classes={subset}").census for subset in subsets]
    assert censuses[0] == censuses[1] == censuses[2]
    assert censuses[0].per_class["rare"] == (None, None)
    assert sum(filter(None, censuses[0].patients)) == 63


def test_nobody_and_few_are_told_alike(tmp_path: Path) -> None:
    """Of a class, of a reason to refuse: fewer than the floor is what none would be."""
    seen = []
    for few in (0, 3):
        rows = [*table(60), *table(few, first=60, seed=2, finding="rare"), *table(few, first=80, finding="?")]
        census = told(hospital_of(tmp_path / str(few), rows, THREE)).census
        seen.append((census.per_class["rare"], census.refused))
    assert seen[0] == seen[1] == ((None, None), {})


def test_no_shot_is_answered_by_a_hidden_count(tmp_path: Path) -> None:
    """Whether five patients of a class or none: every shot has the same answer, described or trained."""
    answers = []
    for few in (0, 5):
        rows = [*table(160), *table(few, first=160, seed=2, finding="rare")]
        home = hospital_of(tmp_path / str(few), rows, THREE)
        classes, shots = f"task.classes={list(THREE)}", (1, 2, 3, 5)
        configs = [asked(classes, f"training.shot={shot}", "training.way=3") for shot in shots]
        own = asked(classes, "training.head=home", "task.own-classes=true")
        replies = [ask(home, "query.describe", config) for config in (*configs, own)]
        replies += [ask(home, "train", config, server_round=1) for config in configs]
        answers.append([reply.has_error() for reply in replies])
    assert answers[0] == answers[1] == [True] * 4 + [False] + [True] * 4


def test_what_is_answered_differs_by_nobody_or_a_floor(tmp_path: Path) -> None:
    """Whoever is asked for: every pair of classes, unseen ones, the adaptation side or all, own classes."""
    rows = [*table(90), *table(13, first=90, seed=2, finding="rare")]
    home = hospital_of(tmp_path, rows, THREE)
    answered = set()
    for size in (2, 3):
        for classes in combinations(THREE, size):
            over = (f"task.classes={list(classes)}", FEDERATION)
            for unseen in ((), classes[:1], classes[1:2])[: 2 * size - 3]:
                for patients in ("adaptation", "all"):
                    for head in ("shared", "home"):
                        config = asked(
                            *over,
                            f"experiment.unseen-classes={list(unseen)}",
                            f"training.patients={patients}",
                            f"training.head={head}",
                        )
                        if not ask(home, "train", config, column_sums=True).has_error():
                            answered.add(frozenset(summed(home, config)))
    assert len(answered) > 4
    apart = [len(one ^ other) for one, other in combinations(answered, 2)]
    assert min(apart) >= 10


def summed(home: Home, config: Config) -> list[tuple[float, ...]]:
    """Return the rows that a sum over columns is over; every one is a patient of its own here."""
    measured = rows_asked(Node.of(config_of(home)), config.to_json()).measured
    assert measured is not None
    return [tuple(row) for row in lesson(measured, config, "reptile").cases.inputs.tolist()]


def test_all_folders_of_a_label_are_one_set_of_rows(tmp_path: Path) -> None:
    """Two lists of classes would give the difference of two folders' rows; a label has one."""
    home = new_home(tmp_path / "node")
    register(home, write_rows(tmp_path / "north", table(60)), label="finding")
    south = write_rows(tmp_path / "south", [*table(60, first=60, seed=2), *table(2, first=200, seed=3)])
    with pytest.raises(ConfigError, match="all folders of a label have the same"):
        register(Home.load(home.directory), south, label="finding", classes=THREE)
    register(Home.load(home.directory), south, label="finding")
    reply = ask(home, "train", asked(FEDERATION, "training.patients=all"), column_sums=True)
    assert rows_in(reply) == 122
    assert sum(filter(None, told(home).census.patients)) == 122
    forget(Home.load(home.directory), south)
    assert sum(filter(None, told(home).census.patients)) == 60


def test_another_label_over_nearly_the_same_patients_gives_nobody_away(tmp_path: Path) -> None:
    """One patient lacks the second label: the sums over both labels differ by that patient's whole group."""
    rows = [[*row, row[-1]] for row in table(60)]
    rows[17][-1] = "?"
    home = new_home(tmp_path / "node")
    folder = write_rows(tmp_path / "data", rows, ("finding", "second"))
    sums = []
    for label in ("finding", "second"):
        register(Home.load(home.directory), folder, label=label)
        config = asked(f"task.label={label}", FEDERATION, "training.patients=all")
        reply = ask(home, "train", config, column_sums=True)
        sums.append(rows_in(reply))
    assert sums[0] == 60
    assert sums[1] <= 50


def test_statistics_fit_all_rows_whichever_classes_bring_them(tmp_path: Path) -> None:
    """Nobody here is of the two classes of the first message: any statistics would fit, and be kept as first.

    With them in place each column of the second message would be a million times as long.
    """
    home = hospital_of(tmp_path, table(80), (*THREE[:2], "rare", "rarer"))
    stretched = columns.Statistics(np.zeros(4), np.full(4, 1e-6)).to_json()

    def refused(run: str, classes: tuple[str, ...]) -> str:
        config = asked(f"task.classes={list(classes)}", FEDERATION)
        return wire.words_of(ask(home, wire.TRAIN, config, statistics=stretched, run=run, server_round=1))

    assert "standardise" in refused("a", ("rare", "rarer"))
    assert "standardise" in refused("b", THREE[:2])


def test_an_erased_patient_stops_every_message_at_once(tmp_path: Path) -> None:
    """And once it is registered, the whole group of who left is silent; sums differ by a floor."""
    home, folder = hospital_of(tmp_path, table(60)), tmp_path / "data"
    config = asked(FEDERATION, "training.patients=all")
    before = rows_in(ask(home, "train", config, column_sums=True))
    write_rows(folder, table(60)[1:])
    for kind in ("query.describe", "train"):
        reply = ask(home, kind, config, restart=False)
        assert reply.error.code == wire.REFUSED
        assert "p0" not in (reply.error.reason or "")
    use = register(Home.load(home.directory), folder, label="finding").use
    after = rows_in(ask(home, "train", config, column_sums=True))
    assert use.silent == before - after - 1
    assert before - after >= 10


@pytest.mark.parametrize("harm", ["gone", "changed", "relabelled", "undecodable"])
def test_an_image_that_is_not_as_it_was_stops_every_message(tmp_path: Path, harm: str) -> None:
    """Whatever the size asked for: no row silently drops out."""
    home, folder = new_home(tmp_path / "node"), tmp_path / "archive"
    write_hospital(folder, 60, images=1)
    register(home, folder, label="finding", classes=("normal", "nodule"), image_size=16)
    network = ("model.name=conv4", "model.width=2")
    small = asked("data.image-size=16", *network)
    first = told(home, "data.image-size=16", *network)
    assert not ask(home, "query.describe", small, restart=False).has_error()
    image = sorted(folder.rglob("*.dcm"))[0]
    content = image.read_bytes()
    if harm == "gone":
        image.unlink()
    elif harm == "relabelled":
        sheet = folder / "labels.csv"
        sheet.write_text(sheet.read_text().replace(f"{image.name},normal", f"{image.name},nodule"))
    else:
        image.write_bytes(content[:-20] if harm == "undecodable" else content[:-2] + b"\1\1")
    for size in (16, 20):
        config = asked(f"data.image-size={size}", *network)
        reply = ask(home, "query.describe", config, restart=False)
        assert reply.error.code == wire.REFUSED
    if harm in ("changed", "undecodable", "gone"):
        image.write_bytes(content)
        assert told(home, "data.image-size=16", *network) == first


def test_new_rows_are_not_used_before_they_are_registered(tmp_path: Path) -> None:
    """A file that appears changes nothing; registered, three new patients wait."""
    home, folder = hospital_of(tmp_path, table(60)), tmp_path / "data"
    before = told(home)
    write_rows(folder, [*table(60), *table(3, first=60, seed=2)])
    assert told(home) == before
    use = register(Home.load(home.directory), folder, label="finding").use
    assert use.waiting == 3
    assert told(home) == before


def test_too_few_patients_are_refused_at_the_register(tmp_path: Path) -> None:
    """In words for the operator; nothing is registered."""
    with pytest.raises(DataError, match=r"min-patients in policy\.toml asks for 10 on each side"):
        hospital_of(tmp_path, table(19))
    assert not Home.load(tmp_path / "node").settings.data


def test_the_registers_share_is_the_hospitals(tmp_path: Path) -> None:
    """It may be changed before the first answer; afterwards everybody stays where they are."""
    home = hospital_of(tmp_path, table(100))
    folder = tmp_path / "data"
    register(home, folder, label="finding", share=0.2)
    home = Home.load(home.directory)
    learned, tested = told(home).census.patients
    assert (learned or 0) < 35 < (tested or 0)
    register(home, folder, label="finding", share=0.8)
    assert told(Home.load(home.directory)).census.patients == (learned, tested)


def test_nothing_of_a_patient_is_in_the_record(tmp_path: Path) -> None:
    """Keyed names alone, for the owner alone; and what leaves has no words of the folder's."""
    home = hospital_of(tmp_path, table(60))
    record = home.book.path
    assert record.stat().st_mode & 0o777 == 0o600
    content = record.read_text()
    assert not any(f'"p{number}"' in content for number in range(60))
    assert "0.345584" not in content  # a cell
    said = json.dumps(asdict(told(home)))
    assert "data" not in said
    assert set(json.loads(said)["census"]) == {"least", "patients", "per_class", "refused"}


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_was_moved_has_the_rows_that_it_had(tmp_path: Path, *, moved: bool) -> None:
    """Without a patient column too, at another path or with another state: a new line waits for its group.

    Named by a secret of the new place, all lines would be new ones, and two sums differ by one of them.
    """
    home, rows = new_home(tmp_path / "node"), table(60)
    register(home, nameless(tmp_path / "before", rows), label="finding")
    before = ask(home, "train", asked(FEDERATION), column_sums=True)
    home = Home.load(home.directory)
    forget(home, tmp_path / "before")
    after = nameless(tmp_path / ("after" if moved else "before"), [*rows, *table(1, first=60, seed=2)])
    register(Home.load(home.directory), after, label="finding", state=tmp_path / "state")
    assert (delta(ask(home, "train", asked(FEDERATION), column_sums=True)) == delta(before)).all()


def nameless(folder: Path, rows: list[list[object]]) -> Path:
    """Write a table hospital whose rows say nothing of whose they are."""
    write_rows(folder, rows)
    lines = (folder / "table.csv").read_text().splitlines()
    (folder / "table.csv").write_text("".join(line.partition(",")[2] + "\n" for line in lines))
    schema = folder / "schema.toml"
    schema.write_text(schema.read_text().replace('patient = "patient"\n', ""))
    return folder
