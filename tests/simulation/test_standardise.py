"""Columns standardised with sums over a meta-training's hospitals: whose rows count, who sees what."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors import safe_open

from client.app import app as client_app
from client.dataset import Hospital, Rules, open_folders, open_hospital
from client.folder import Source
from client.part import standardised
from client.policy import EVERYTHING, Kind, check
from client.site import NodeConfig, opener
from common import columns, wire
from common.columns import Statistics
from common.config import Config, load
from common.errors import ConfigError, DataError, PolicyError, WireError
from common.sections import Data, Task
from common.weights import pack
from server import checkpoint, evaluation
from server.app import CHECKPOINT, MetaTrained, common_input_shape, identity, initial_weights, meta_train
from server.checkpoint import Checkpoint
from server.exchange import exchange
from server.experiment.attendance import Roll, Sites, attend
from simulation.grid import InProcessGrid
from simulation.run import simulate
from simulation.secrets import make_secrets

Write = Callable[[int], Path]
TASK = Task(classes=("normal", "nodule"))
FEDERATION = Data(standardise="federation")


def small(*over: str) -> Config:
    """Return a configuration for tables that takes a second."""
    settings = ["task.classes=['normal', 'nodule']", "model.name=mlp", "model.width=8", "training.rounds=3"]
    return load(None, [*settings, "data.standardise=federation", *over])


class Counting(InProcessGrid):
    """A grid that counts who was asked for sums, and answers for those who are lost."""

    def __init__(self, parent: Path, lost: Iterable[str] = ()) -> None:
        names = [one.name for one in sorted(parent.iterdir())]
        secrets = parent.parent / "secrets"
        self.keys = make_secrets(secrets, names)
        self.names, self.lost, self.asked = names, set(lost), list[str]()
        nodes: list[NodeConfig] = [
            {
                "site": name,
                "hospital": str(parent / name),
                "device": "cpu",
                "threads": 1,
                "secrets": str(secrets / name),
            }
            for name in names
        ]
        super().__init__(client_app, nodes, workers=1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue what is not lost."""
        ids: list[str] = []
        for message in messages:
            site = self.names[message.metadata.dst_node_id - 2]
            train = message.metadata.message_type == wire.TRAIN
            if train and wire.read_instruction(message).column_sums:
                self.asked.append(site)
                if site in self.lost:
                    ids.append("")
                    continue
            ids += super().push_messages([message])
        return ids


@contextmanager
def grid_of(parent: Path, config: Config, lost: Iterable[str] = ()) -> Iterator[tuple[Counting, Sites]]:
    """Yield a grid of the hospitals in `parent`, and what they say of themselves."""
    grid = Counting(parent, lost)
    with grid:
        yield grid, evaluation.describe(grid, config).all_of_them()


def train(
    grid: Counting,
    sites: Sites,
    config: Config,
    out: Path,
    on_round: Callable[[Checkpoint], None] = lambda _: None,
    *,
    secure: bool = False,
) -> MetaTrained:
    """Run one meta-training over `sites`."""
    initial = pack(initial_weights(config, common_input_shape(sites.values())))
    identities = grid.keys if secure else None
    return meta_train(grid, config, "reptile", sites, initial, out, on_round, identities=identities)


def rows_of(folder: Path, *, everyone: bool = False) -> np.ndarray:
    """Return the rows of table.csv that a hospital learns from, or all of them, in any order."""
    opened = open_hospital(folder, FEDERATION, TASK)
    assert opened.measured is not None
    side = opened.measured.everyone if everyone else opened.measured.adaptation
    with (folder / "table.csv").open() as file:
        written = {tuple(float(row[name]) for name in "abcd") for row in csv.DictReader(file)}
    rows: np.ndarray = side.inputs.numpy()
    assert set(map(tuple, rows.tolist())) <= written
    return rows


def mended(folder: Path, old: str, new: str, name: str = "table.csv") -> None:
    """Replace text in a hospital's file; it must be there."""
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize("patients", ["adaptation", "all"])
def test_statistics_are_those_of_all_rows_trained_on_in_plain_and_securely(
    table_hospitals: Write, tmp_path: Path, patients: str
) -> None:
    """Equal to NumPy's over the rows laid together, and bit for bit the same in both ways."""
    parent = table_hospitals(3)
    config = small(f"training.patients={patients}", "training.batch-size=0")
    together = np.concatenate([rows_of(one, everyone=patients == "all") for one in sorted(parent.iterdir())])
    with grid_of(parent, config) as (grid, sites):
        plain = train(grid, sites, config, tmp_path / "plain")
        summed = train(grid, sites, config, tmp_path / "summed", secure=True)
    assert plain.statistics == summed.statistics
    found = Statistics.from_json(plain.statistics)
    np.testing.assert_allclose(found.mean, together.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.std, together.std(0, ddof=1), rtol=1e-13)
    assert torch.allclose(plain.phi, summed.phi, atol=1e-3)


def test_bits_of_the_secure_grid_do_not_touch_the_statistics(table_hospitals: Write, tmp_path: Path) -> None:
    """However coarsely deltas are rounded, sums of columns are not."""
    parent, found = table_hospitals(3), set()
    for bits in (8, 24):
        config = small(f"secure-aggregation.bits={bits}", "training.rounds=1", "training.weighting=patients")
        with grid_of(parent, config) as (grid, sites):
            found.add(train(grid, sites, config, tmp_path / str(bits), secure=True).statistics)
    assert len(found) == 1


def test_a_held_out_hospital_is_in_nothing_that_it_is_judged_with(
    table_hospitals: Write, tmp_path: Path
) -> None:
    """Whatever site-3 holds, a training without it has the same statistics and weights; with it, others."""
    parent, config, ends = table_hospitals(3), small(), []
    for turn in ("before", "after"):
        with grid_of(parent, config) as (grid, sites):
            without = {site: one for site, one in sites.items() if site != "site-3"}
            ends.append(train(grid, without, config, tmp_path / turn / "without"))
            assert "site-3" not in grid.asked
            ends.append(train(grid, sites, config, tmp_path / turn / "with"))
        mended(parent / "site-3", "normal\n", "normal\n1000,1000,1000,1000,normal\n")
        opener.cache_clear()  # a node reads its data once per process
    before, before_with, after, after_with = ends
    assert before.statistics == after.statistics
    assert torch.equal(before.phi, after.phi)
    assert before_with.statistics not in (before.statistics, after_with.statistics)


def test_a_resumed_training_keeps_its_statistics_and_asks_nobody_again(
    table_hospitals: Write, tmp_path: Path
) -> None:
    """Interrupted after a round, or before the first: the same bits as without."""
    parent, config = table_hospitals(3), small()
    with grid_of(parent, config) as (grid, sites):
        straight = train(grid, sites, config, tmp_path / "straight")

    def interrupt(now: Checkpoint) -> None:
        raise KeyboardInterrupt

    with grid_of(parent, config) as (grid, sites):
        with pytest.raises(KeyboardInterrupt):
            train(grid, sites, config, tmp_path / "broken", interrupt)
        assert grid.asked == ["site-1", "site-2", "site-3"]
        again = train(grid, sites, config, tmp_path / "broken")
        assert len(grid.asked) == 3
    assert again.statistics == straight.statistics
    assert torch.equal(again.phi, straight.phi)
    path, digests = tmp_path / "broken" / CHECKPOINT, {site: told.digest for site, (_, told) in sites.items()}
    kept = checkpoint.load(path, identity=identity(config, "reptile", digests))
    assert kept.statistics == straight.statistics


def test_a_quorum_is_enough_for_sums_and_too_few_are_told(table_hospitals: Write, tmp_path: Path) -> None:
    """One of three is lost: with min-cohort 2 the others' sums count; with 3, or 0 (all), the run ends."""
    parent = table_hospitals(3)
    for least, message in (("3", "2 hospitals answered"), ("0", "columns are summed: site-2")):
        config = small(f"training.min-cohort={least}", "training.round-timeout=20")
        with (
            grid_of(parent, config, lost=["site-2"]) as (grid, sites),
            pytest.raises(DataError, match=message),
        ):
            train(grid, sites, config, tmp_path / least)
    config = small("training.min-cohort=2", "training.round-timeout=20")
    with grid_of(parent, config, lost=["site-2"]) as (grid, sites):
        two = train(grid, sites, config, tmp_path / "2")
        alone = train(grid, {site: sites[site] for site in ("site-1", "site-3")}, config, tmp_path / "alone")
    assert two.statistics == alone.statistics
    assert two.history[0]["sites"] == 3, "who missed the sums trains all the same"


def test_a_run_judges_each_hospital_with_the_statistics_of_its_own_training(
    table_hospitals: Write, tmp_path: Path
) -> None:
    """A whole experiment: phi.safetensors has the published training's; nothing else than "site" changes."""
    parent = table_hospitals(3)
    least = [
        f"data.hospitals={parent}",
        "experiment.algorithms=['reptile', 'local-only', 'pooled']",
        "experiment.shots=[0, 5]",
        "experiment.draws=3",
        "experiment.replicates=100",
        "adaptation.folds=0",
        "engine.workers=1",
    ]
    found = {
        name: simulate(small(*least, f"data.standardise={name}"), tmp_path / name, Silent(), command=name)[
            "rows"
        ]
        for name in ("site", "federation")
    }
    by_cell = {
        name: {(row["algorithm"], row["site"], row["shot"], row["metric"]): row["mean"] for row in rows}
        for name, rows in found.items()
    }
    differ = {cell for cell, mean in by_cell["site"].items() if mean != by_cell["federation"][cell]}
    assert {cell[0] for cell in differ} == {"reptile", "pooled"}, "what was never trained stays as it was"
    with safe_open(tmp_path / "federation" / "phi.safetensors", "pt") as phi:
        published = Statistics.from_json(phi.metadata()["statistics"])
    together = np.concatenate([rows_of(one) for one in sorted(parent.iterdir())])
    np.testing.assert_allclose(published.mean, together.mean(0), rtol=1e-13)
    with safe_open(tmp_path / "site" / "phi.safetensors", "pt") as phi:
        assert "statistics" not in phi.metadata()


class Silent:
    """Takes what an experiment tells while it runs."""

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Return what is called after each step."""
        return lambda: None


@pytest.fixture
def hospital(table_hospitals: Write) -> Hospital:
    """Return one table hospital whose columns the federation standardises."""
    return open_hospital(table_hospitals(1) / "site-1", FEDERATION, TASK)


def test_a_hospital_is_standardised_anew_for_each_message(hospital: Hospital) -> None:
    """(x - mean) / std from what was measured; indicators and the cached hospital stay as they were."""
    before, measured = hospital.digest, hospital.measured
    assert measured is not None
    seen = standardised(hospital, Statistics(np.array([1.0, 2.0, 0.0, 0.0]), np.array([2.0, 0.5, 1.0, 0.0])))
    for side, raw in ((seen.adaptation, measured.adaptation), (seen.test, measured.test)):
        expected = (raw.inputs - torch.tensor([1.0, 2.0, 0.0, 0.0])) * torch.tensor([0.5, 2.0, 1.0, 0.0])
        assert torch.equal(side.inputs, expected.float())
    assert replace(hospital).digest == before
    with pytest.raises(WireError, match="statistics are of 3 columns; this hospital has 4"):
        standardised(hospital, Statistics(np.zeros(3), np.ones(3)))


def test_indicators_and_missing_values_keep_their_places(tmp_path: Path) -> None:
    """One numeric column, missing once, before two indicators, which no statistics touch."""
    (tmp_path / "schema.toml").write_text('numeric = ["age"]\n[categorical]\ncp = [1, 2]\n')
    rows = "".join(f"{'' if row == 3 else 40 + row},{1 + row % 2},normal\n" for row in range(40))
    (tmp_path / "table.csv").write_text("age,cp,finding\n" + rows)
    seen = standardised(
        open_hospital(tmp_path, FEDERATION, TASK), Statistics(np.array([50.0]), np.array([2.0]))
    )
    cases = seen.everyone.inputs
    assert sorted(cases[:, 0].tolist()) == sorted([0.0 if row == 3 else (row - 10) / 2 for row in range(40)])
    own = open_hospital(tmp_path, Data(), TASK).everyone.inputs
    assert torch.equal(cases[:, 1:], own[:, 1:])


def test_folders_together_count_together(table_hospitals: Write) -> None:
    """A node of two folders sums over the rows of both; its digest follows what was measured."""
    folders = sorted(table_hospitals(2).iterdir())
    parts = [open_hospital(one, FEDERATION, TASK) for one in folders]
    places = [Source(one, one / ".zamenis") for one in folders]
    both = open_folders("both", places, FEDERATION, TASK, Rules())
    assert both.columns == 4
    assert both.measured is not None
    separate = [columns.sums(part.measured.adaptation.inputs.numpy()) for part in parts if part.measured]
    together = columns.sums(both.measured.adaptation.inputs.numpy())
    assert columns.statistics(together).to_json() == columns.statistics(separate[0] + separate[1]).to_json()


def test_another_unit_changes_the_digest(table_hospitals: Write) -> None:
    """A column times 2 is another content, whoever standardises it."""
    folder = table_hospitals(1) / "site-1"
    before = [open_hospital(folder, data, TASK).digest for data in (Data(), FEDERATION)]
    with (folder / "table.csv").open() as file:
        header, *rows = csv.reader(file)
    text = [header, *([str(2 * float(row[0])), *row[1:]] for row in rows)]
    (folder / "table.csv").write_text("\n".join(map(",".join, text)) + "\n")
    after = [open_hospital(folder, data, TASK).digest for data in (Data(), FEDERATION)]
    assert before[0] == before[1] != after[0] == after[1]


@pytest.mark.parametrize("value", ["1e19", "-1e19", "1e-19"])
def test_a_number_that_cannot_be_summed_is_told_by_line_and_column(
    table_hospitals: Write, value: str
) -> None:
    """Only where the federation standardises; the value itself is not told."""
    folder = table_hospitals(1) / "site-1"
    mended(folder, "a,b,c,d,finding\n", f"a,b,c,d,finding\n1,{value},1,1,normal\n")
    open_hospital(folder, Data(), TASK)
    with pytest.raises(DataError, match=r"line 2: b must be 0, or 2\^-60 to 2\^60 in size") as error:
        open_hospital(folder, FEDERATION, TASK)
    assert value not in str(error.value)


def test_a_hospital_may_refuse_sums_over_its_columns() -> None:
    """The key of policy.toml is named; what the hospital standardises by itself is not touched."""
    own, config = EVERYTHING.model_copy(update={"standardise": ("site",)}), small()
    kinds: tuple[Kind, ...] = ("describe", "train")
    for kind in kinds:
        with pytest.raises(PolicyError, match="standardise"):
            check(own, kind, wire.Instruction(config.to_json(), "reptile"), config, 10)
    config = small("data.standardise=site")
    check(own, "train", wire.Instruction(config.to_json(), "reptile"), config, 10)


def test_sums_are_refused_where_each_site_standardises_its_own(table_hospitals: Write) -> None:
    """A coordinator that asks for them all the same gets a refusal, and no sums."""
    parent, config = table_hospitals(1), small("data.standardise=site")
    with grid_of(parent, config) as (grid, _):
        asked = wire.Instruction(config.to_json(), "reptile", column_sums=True)
        message = wire.instruct(2, wire.TRAIN, asked, wire.vector(torch.zeros(4 * columns.NUMBERS)))
        ((_, reply),) = exchange(grid, [message], timeout=20)
    assert reply.error.code == wire.REFUSED
    assert "no numeric columns" in str(reply.error.reason)


def indicator(parent: Path) -> None:
    """Give the second hospital a category in place of its last number."""
    mended(parent / "site-2", ', "d"]\n', ']\n[categorical]\ne = ["x"]\n', "schema.toml")
    header, *rows = (parent / "site-2" / "table.csv").read_text().splitlines()
    (parent / "site-2" / "table.csv").write_text(f"{header},e\n" + "".join(f"{row},x\n" for row in rows))


def order(parent: Path) -> None:
    """Name the second hospital's columns in another order."""
    mended(parent / "site-2", '"c", "d"', '"d", "c"', "schema.toml")


def fewer(parent: Path) -> None:
    """Leave the second hospital's last column out."""
    mended(parent / "site-2", ', "d"', "", "schema.toml")


@pytest.mark.parametrize("standardise", ["site", "federation"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (indicator, "column 4 is d at site-1, and e of x at site-2"),
        (order, "column 3 is c at site-1, and d at site-2"),
        (fewer, "column 4 is d at site-1, and missing at site-2"),
    ],
)
def test_hospitals_of_different_columns_are_told_apart(
    table_hospitals: Write, standardise: str, change: Callable[[Path], None], told: str
) -> None:
    """Also where there are as many: the same number must mean the same everywhere."""
    parent, config = table_hospitals(2), small(f"data.standardise={standardise}")
    change(parent)
    with grid_of(parent, config) as (_, sites), pytest.raises(DataError, match=told):
        common_input_shape(sites.values())


def test_who_has_other_columns_than_most_is_left_out_with_the_reason(
    table_hospitals: Write, tmp_path: Path
) -> None:
    """Over a network the others go on."""
    parent, config = table_hospitals(3), small("training.min-cohort=2")
    order(parent)
    told: list[str] = []
    with grid_of(parent, config) as (grid, sites):
        roll = Roll({node: site for site, (node, _) in sites.items()}, 20.0, told.append)
        assert set(attend(grid, config, tmp_path, roll, lambda: None)) == {"site-1", "site-3"}
    assert told == ["site-2: column 3 is c at most, and d at this one; left out."]


def test_what_bears_lying_sites_does_not_go_with_sums() -> None:
    """Refused before anything is trained; also over each algorithm's own settings."""
    with pytest.raises(ConfigError, match="sums over columns do not"):
        small("training.aggregation=median")
    assert json.loads(small().to_json())["data"]["standardise"] == "federation"
