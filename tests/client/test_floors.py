"""Least patients behind what leaves: the attack that reads patients out of sums, and the floors it meets."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from client.app import app as client_app
from client.classes import Lesson
from client.episodes import episodes
from client.floors import check_floors, check_lesson
from client.policy import Policy, guarded
from client.registration import register
from client.site import NodeConfig
from common import columns, wire
from common.algorithms import ALGORITHMS
from common.bounds import exact
from common.cases import Cases, Episode
from common.config import Config, load
from common.errors import DataError, PolicyError
from common.initialise import learner_of_algorithm, parameters_of
from common.seeds import Draws
from common.tasks import TaskKind
from server.exchange import exchange
from server.secure import SecureSum
from simulation.grid import InProcessGrid
from simulation.secrets import make_secrets
from tests.client.registered import ask, asked, new_home, write_rows
from tests.conftest import write_table_hospital

TABLE = [
    "task.classes=['normal', 'nodule']",
    "model.name=linear",
    "data.standardise=federation",
    "experiment.shots=[]",
    "adaptation.folds=0",
]
CRAFTED = [
    "training.inner-optimizer=sgd",
    "training.inner-lr=1.0",
    "training.clip-norm=50.0",
    "secure-aggregation.bits=24",
]
ONE_BY_ONE = [*TABLE, *CRAFTED, "training.batch-size=1", "training.inner-steps=1"]
NUMBERS = 4
"""Numeric columns of a test hospital."""
TRAINED = sorted(name for name, one in ALGORITHMS.items() if one.local_update)
BETWEEN = 760.0
"""Longer than one test hospital's digits, shorter than the others'."""
SILENT = -30.0
"""A bias at which a case of the first class has no gradient, and one of the second its own row."""


@contextmanager
def guarded_hospitals(
    parent: Path, *, masked: bool = True
) -> Iterator[tuple[InProcessGrid, dict[str, bytes]]]:
    """Yield a grid of three hospitals with the policy that a new hospital has, and their identity keys.

    Not `masked`, they answer as a hospital's worker answers its node.
    """
    names = [f"site-{number}" for number in range(1, 4)]
    identities = make_secrets(parent / "secrets", names)
    policy = parent / "policy.toml"
    policy.write_text(guarded())
    nodes: list[NodeConfig] = [
        {
            "site": name,
            "hospital": str(write_table_hospital(parent / "data" / name, seed=seed, rows=62)),
            "policy": str(policy),
            "device": "cpu",
            "threads": 1,
            **({"secrets": str(parent / "secrets" / name)} if masked else {}),
        }
        for seed, name in enumerate(names, start=1)
    ]
    with InProcessGrid(client_app, nodes, workers=1) as grid:
        yield grid, identities


def rows_of(parent: Path) -> np.ndarray:
    """Return every hospital's rows `[row, column]`."""
    tables = sorted((parent / "data").glob("*/table.csv"))
    lines = [list(csv.DictReader(table.read_text().splitlines())) for table in tables]
    return np.array([[float(row[name]) for name in "abcd"] for table in lines for row in table])


def sums_of(
    grid: InProcessGrid, identities: dict[str, bytes], config: Config, nodes: dict[str, int], rounds: int
) -> Iterator[tuple[np.ndarray | None, dict[str, str]]]:
    """Yield what each round gives: the sum of all updates, if any, and the sites' refusals."""
    training = config.training_of("reptile")
    told = columns.Statistics(np.zeros(NUMBERS), np.ones(NUMBERS)).to_json()
    phi = wire.vector(torch.tensor([*[0.0] * NUMBERS, SILENT]))
    for server_round in range(1, rounds + 1):
        instruction = wire.Instruction(
            config=config.to_json(), algorithm="reptile", server_round=server_round, statistics=told, run="a"
        )
        messages: dict[str, Message] = {
            site: wire.instruct(node, wire.TRAIN, instruction, phi, seconds=60)
            for site, node in nodes.items()
        }
        found = SecureSum(training, 24, NUMBERS + 1, nodes, identities).gather(grid, messages, [])
        yield None if found.mean is None else found.sites * found.mean.numpy(), found.missing


def test_a_training_with_other_statistics_every_round_is_refused(tmp_path: Path) -> None:
    """The second round comes with another mean, and the third with what no federation has, in a new run."""
    config = load(None, [*TABLE, *CRAFTED])
    phi = wire.vector(torch.zeros(NUMBERS + 1))

    def answered(run: str, mean: float, std: float) -> str:
        told = columns.Statistics(np.full(NUMBERS, mean), np.full(NUMBERS, std)).to_json()
        instruction = wire.Instruction(config.to_json(), "reptile", 1, run=run, statistics=told)
        message = wire.instruct(2, wire.TRAIN, instruction, phi, seconds=60)
        ((_, reply),) = exchange(grid, [message], timeout=60)
        return wire.words_of(reply) if reply.has_error() else ""

    with guarded_hospitals(tmp_path, masked=False) as (grid, _):
        assert answered("a", 0.0, 1.0) == ""
        assert "standardise" in answered("a", 0.1, 1.0)
        assert answered("b", 0.1, 1.0) == ""
        assert "standardise" in answered("c", 0.0, 1e-3)


def test_a_batch_of_one_reads_patients_out_of_secure_sums(tmp_path: Path) -> None:
    """Where one hospital alone drew a patient of the second class, the sum of three is that patient's row."""
    config = load(None, ONE_BY_ONE)
    with guarded_hospitals(tmp_path) as (grid, identities):
        nodes = {f"site-{place}": place + 1 for place in range(1, 4)}
        told = list(sums_of(grid, identities, config, nodes, rounds=16))
    rows = rows_of(tmp_path)
    read = [
        sum_
        for sum_, _ in told
        if sum_ is not None and np.abs(rows - sum_[:NUMBERS]).max(1).min() < 1e-4 and abs(sum_[-1] - 1) < 1e-4
    ]
    assert len(read) == 0
    for _, missing in told:
        assert all("min-step-patients" in missing[site] for site in nodes)


def test_a_rounds_clip_cuts_no_sums_over_columns(tmp_path: Path) -> None:
    """Between the shortest hospital's digits and the next, sums within two clips give that hospital's own.

    They are x + C u for the same rows, hospitals and weights, and x is a whole number in every digit.
    """
    config = load(None, [*TABLE, "experiment.algorithms=['reptile']"])
    training, length = exact(config.training_of("reptile")), NUMBERS * columns.NUMBERS
    instruction = wire.Instruction(config.to_json(), "reptile", column_sums=True, clip_norm=BETWEEN)
    phi = wire.vector(torch.zeros(length))
    with guarded_hospitals(tmp_path) as (grid, identities):
        nodes = {f"site-{place}": place + 1 for place in range(1, 4)}
        sums = SecureSum(training, columns.BITS, length, nodes, identities)
        messages = {
            site: wire.instruct(node, wire.TRAIN, instruction, phi, seconds=60)
            for site, node in nodes.items()
        }
        found = sums.gather(grid, messages, [], BETWEEN)
        assert found.mean is None
        assert all("the vector's bounds are not those" in found.missing[site] for site in nodes)
        whole = sums.gather(grid, messages, []).mean
    assert whole is not None
    assert float((3 * whole - (3 * whole).round()).abs().max()) < 1e-9


def test_no_hospital_refuses_for_what_one_patient_overflows(tmp_path: Path) -> None:
    """Weights of 3e38 / t overflow where somebody has more than t; which hospital that is, is not told.

    A refusal would be one exact bit about one hospital, and about twenty of them its largest value.
    """
    config = load(None, [*TABLE, *CRAFTED, "training.batch-size=0", "training.inner-steps=1"])
    training, top = config.training_of("reptile"), float(np.finfo(np.float32).max)
    told = columns.Statistics(np.zeros(NUMBERS), np.ones(NUMBERS)).to_json()
    answered = []
    with guarded_hospitals(tmp_path) as (grid, identities):
        nodes = {f"site-{place}": place + 1 for place in range(1, 4)}
        sums = SecureSum(training, 24, NUMBERS + 1, nodes, identities)
        for server_round, most in enumerate((1.0, 3.0, 10.0, 1e3, 1e6), start=1):
            instruction = wire.Instruction(
                config.to_json(), "reptile", server_round, statistics=told, run="overflow"
            )
            phi = wire.vector(torch.tensor([top / most, *[0.0] * NUMBERS]))
            messages = {
                site: wire.instruct(node, wire.TRAIN, instruction, phi, seconds=60)
                for site, node in nodes.items()
            }
            found = sums.gather(grid, messages, list(nodes))
            answered.append((found.mean is not None, found.missing))
    assert answered == [(True, {})] * 5


@pytest.mark.parametrize("name", sorted({*TRAINED} - {"fedbn", "pooled"}))
def test_whatever_blows_up_is_answered_with_nothing(name: str, tmp_path: Path) -> None:
    """Steps of 1e38 overflow in every algorithm that takes any; the delta that leaves is finite."""
    home = new_home(tmp_path / "node")
    register(home, write_table_hospital(tmp_path / "data", seed=1, rows=120), label="finding")
    over = ["training.inner-lr=1e38", "training.inner-steps=8", f"experiment.algorithms=['{name}']"]
    model = "mlp" if ALGORITHMS[name].adapter else "linear"
    config = asked(*over, f"model.name={model}")
    reply = ask(home, "train", config, algorithm=name, server_round=1, run="r")
    assert not reply.has_error()
    parameters = parameters_of(config, name, (NUMBERS,))
    assert wire.read_contribution(reply, parameters).delta.isfinite().all()


@dataclass(frozen=True)
class Watched(TaskKind):
    """A task that writes down whose cases each loss is of, and how much each of them weighs."""

    seen: list[torch.Tensor] = field(default_factory=list)
    """The patients of every batch that a network was given, in order."""
    losses_of: list[tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=list)

    def loss(
        self, outputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss, and remember whose it was."""
        self.losses_of.append((self.seen[-1], shares))
        return super().loss(outputs, labels, shares)


def several_images(counts: tuple[int, int]) -> Cases:
    """Return so many patients of two classes, one to three images each; an input tells its patient."""
    patients = torch.cat([torch.full((1 + number % 3,), number) for number in range(sum(counts))])
    inputs = torch.stack([patients.float(), torch.randn(len(patients))], dim=1)
    return Cases(inputs, (patients >= counts[0]).long(), patients)


SETTINGS = (
    ("training.batch-size=8",),
    ("training.batch-size=0", "training.episodes=2"),
    ("training.batch-size=16", "training.shot=5", "training.query=7", "training.episodes=3"),
    ("training.shot=10", "training.way=2", "training.inner-optimizer=sgd"),
)


@pytest.mark.parametrize("over", SETTINGS)
@pytest.mark.parametrize("name", TRAINED)
def test_every_gradient_has_eight_patients_of_whom_none_weighs_more(name: str, over: tuple[str, ...]) -> None:
    """Whatever is let through, and whatever an algorithm makes of it: of each loss that is differentiated."""
    algorithm = ALGORITHMS[name]
    compares = algorithm.adapter is not None
    model = "mlp" if compares else "linear"
    config = load(None, [*TABLE[:1], f"model.name={model}", "training.inner-steps=4", *over])
    training, cases = config.training_of(name), several_images((25, 21))
    learner = learner_of_algorithm(config, name, (2,), torch.device("cpu"))
    task = Watched(**{one.name: getattr(learner.task, one.name) for one in fields(TaskKind)})
    learner.task = task
    watched = learner.network.backbone if compares else learner.network.adapter
    watched.register_forward_pre_hook(lambda _, given: task.seen.append(given[0][:, 0].long()))
    tasks = episodes(cases, config.task.classes, training, Draws.of_seed(1), halves=algorithm.queries)
    check_floors(Policy(), tasks, training, algorithm)
    assert algorithm.local_update is not None
    algorithm.local_update(learner, learner.initial, tasks, training, Draws.of_seed(2), {})
    assert len(task.losses_of) + compares * len(task.seen) >= algorithm.steps(training)
    for patients in task.seen if compares else ():
        assert len(set(patients.tolist())) >= 8
    for patients, shares in task.losses_of:
        weight = torch.full((len(patients),), 1 / len(patients)) if shares is None else shares.float()
        each = torch.zeros(46).index_add(0, patients, weight)
        assert (each > 0).sum() >= 8
        assert each.max() <= 1 / 8 + 1e-6


def refusal(
    name: str,
    counts: tuple[int, int],
    *over: str,
    policy: Policy | None = None,
    told: tuple[int, ...] | None = None,
) -> str:
    """Return the key by which a hospital of so many patients refuses an algorithm, or nothing."""
    config = load(None, [*TABLE[:2], *over])
    told = told or tuple(count if count >= Policy().min_count else 0 for count in counts)
    lesson = Lesson(several_images(counts), config.task.classes, config.task.classes, told)
    try:
        check_lesson(policy or Policy(), lesson, config.training_of(name), ALGORITHMS[name])
    except PolicyError as error:
        return error.key
    except DataError:
        return "classes"
    return ""


@pytest.mark.parametrize("name", TRAINED)
def test_patients_whom_no_step_draws_stand_behind_nothing(name: str) -> None:
    """One step of a batch of eight is eight patients' update, however many more a hospital has."""
    few = ("training.batch-size=8", "training.inner-steps=1")
    whole = ALGORITHMS[name].adapter is not None or ALGORITHMS[name].queries
    assert refusal(name, (40, 40), *few) == ("" if whole else "min-patients")
    assert refusal(name, (40, 40), "training.batch-size=8", "training.inner-steps=2") == ""
    many = Policy(min_patients=50)
    assert refusal(name, (40, 40), *few, policy=many) == (
        "" if ALGORITHMS[name].adapter is not None else "min-patients"
    )
    assert refusal(name, (40, 40), "training.batch-size=8", "training.inner-steps=7", policy=many) == ""


@pytest.mark.parametrize("name", TRAINED)
def test_fewer_patients_are_refused_by_key_whatever_the_algorithm(name: str) -> None:
    """Small batches, supports and queries by one key; few patients altogether by the other."""
    compares, asks, step = ALGORITHMS[name].adapter is not None, ALGORITHMS[name].queries, "min-step-patients"
    assert refusal(name, (40, 40)) == ""
    assert refusal(name, (40, 40), "training.batch-size=7") == ("" if compares else step)
    assert refusal(name, (40, 40), "training.shot=3", "training.query=20") == step
    assert refusal(name, (40, 40), "training.shot=10", "training.query=3") == (step if asks else "")
    assert refusal(name, (7, 8)) == (step if asks else "")
    assert refusal(name, (5, 4), policy=Policy(min_step_patients=2)) == "min-patients"


@pytest.mark.parametrize("name", ["reptile", "maml", "protonet"])
def test_which_shots_are_answered_says_nothing_below_the_least_count(name: str) -> None:
    """Of a class with fewer patients than a hospital tells, every shot has the same answer."""
    few = [
        [refusal(name, (60, count), f"training.shot={shot}", "training.query=40") for shot in range(1, 10)]
        for count in (0, 1, 4, 7, 9)
    ]
    assert few == [["classes"] * 9] * 5
    assert refusal(name, (60, 13), "training.shot=5", "training.query=40") == ""


@pytest.mark.parametrize("name", ["reptile", "maml", "protonet"])
def test_who_keeps_few_company_is_not_counted_by_queries(name: str) -> None:
    """Of 20 told of each class, and up to nine more beside rare ones, every shot has the same answer."""
    found = [
        [
            refusal(name, (20 + more, 20), f"training.shot={shot}", "training.query=40", told=(20, 20))
            for shot in range(10, 23)
        ]
        for more in (0, 1, 3, 9)
    ]
    assert found == [found[0]] * 4
    most = 16 if ALGORITHMS[name].queries else 12
    assert found[0] == [""] * (most - 9) + ["min-step-patients"] * (20 - most) + ["classes"] * 2


def test_no_draw_leaves_out_a_single_patient(tmp_path: Path) -> None:
    """Where 20 of 21 are drawn at one hospital and all at two, two sums at the same weights differ by rows.

    40 times the difference was the row that was not drawn, at a cosine of 0.99, and two draws gave the
    difference of two rows to a thousandth.
    """
    home, rows = new_home(tmp_path / "node"), []
    chance = np.random.default_rng(1)
    for side in ("adaptation", "test"):
        for finding, count in (("normal", 20), ("nodule", 21)):
            rows += [
                [f"{side}-{finding}-{place}", *chance.normal(size=4).round(6), finding, side]
                for place in range(count)
            ]
    folder = write_rows(tmp_path / "data", rows, ("finding", "split"))
    schema = folder / "schema.toml"
    schema.write_text(schema.read_text() + 'split = "split"\n')
    register(home, folder, label="finding")
    answered = [
        shot
        for shot in range(10, 22)
        if not ask(home, "train", asked(f"training.shot={shot}"), server_round=1).has_error()
    ]
    assert answered == [10, 11, 12]


def cases(*counts: int, first: int = 0) -> Cases:
    """Return one case each of as many patients of each class, numbered from `first`."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    return Cases(torch.zeros(len(labels), 2), labels, torch.arange(first, first + len(labels)))


@pytest.mark.parametrize(("comparable", "others", "refused"), [(8, 0, False), (8, 5, False), (7, 5, True)])
def test_of_a_query_those_count_whose_class_the_support_has(
    comparable: int, others: int, refused: bool
) -> None:
    """Cases of another class teach nothing, so patients who have them stand behind nothing."""
    task = Episode(cases(10, 0), cases(comparable, others, first=10))
    protonet, policy = ALGORITHMS["protonet"], Policy()
    training = load(None, []).training_of("protonet")
    if refused:
        with pytest.raises(PolicyError, match="min-step-patients"):
            check_floors(policy, [task], training, protonet)
    else:
        check_floors(policy, [task], training, protonet)
    alone = Episode(cases(8, 0), cases(8, 20, first=0))
    with pytest.raises(PolicyError, match="min-patients"):  # the same eight, and twenty of another class
        check_floors(policy, [alone], training, protonet)
