"""Sums over hospitals that differ by one give that one away: each way to get such a pair, as it worked.

Hospitals here have policy files of their own; everything goes through their apps, desks and vaults, and
through the coordinator's own side of secure aggregation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from client.app import app as client_app
from client.policy import guarded, starting
from client.site import NodeConfig
from client.vault import Vault
from common import columns, wire
from common.bounds import exact
from common.config import Config, load
from common.errors import DataError
from common.initialise import shared_weights
from common.secagg.reasons import Reason, refusal
from common.weights import pack
from server import evaluation
from server.app import common_input_shape
from server.exchange import exchange
from server.gather import Gathered
from server.secure import SecureSum
from simulation.grid import InProcessGrid
from simulation.secrets import make_secrets
from tests.conftest import write_table_hospital

SITES = tuple(f"site-{number}" for number in range(1, 6))
BUT_ONE = SITES[:-1]
VICTIM = SITES[-1]
FLOORS = "min-patients = 1\nmin-step-patients = 1\nmax-weight-ratio = 1000\nmin-count = 1\n"


def config(*over: str) -> Config:
    """Return a small secure run in which every step takes all patients: draws decide nothing."""
    return load(
        None,
        [
            'task.classes=["normal","nodule"]',
            'model.name="mlp"',
            "model.width=4",
            "training.inner-steps=5",
            "training.batch-size=0",
            "training.min-cohort=1",
            'experiment.algorithms=["reptile"]',
            "experiment.shots=[]",
            *over,
        ],
    )


@dataclass
class Federation:
    """Table hospitals with policies, and the coordinator's questions to them."""

    folder: Path
    policy: str
    asked: Config = field(default_factory=config)
    lost: Callable[[str, str], bool] = lambda kind, site: False

    def __post_init__(self) -> None:
        self.keys = make_secrets(self.folder / "secrets", SITES)
        self.nodes: list[NodeConfig] = []
        for number, site in enumerate(SITES):
            home = write_table_hospital(self.folder / site, seed=number, rows=40 + 5 * number)
            self.file(site).write_text(self.policy)
            secrets = str(self.folder / "secrets" / site)
            told: NodeConfig = {"site": site, "hospital": str(home), "threads": 1, "secrets": secrets}
            self.nodes.append({**told, "policy": str(self.file(site))})
        self.grid = Grid(self)
        described = evaluation.describe(self.grid, self.asked).all_of_them()
        self.ids = {site: node for site, (node, _) in described.items()}
        self.columns = described[VICTIM][1].columns
        self.phi = pack(shared_weights(self.asked, "reptile", common_input_shape(described.values())))
        self.training = self.asked.training_of("reptile")

    def file(self, site: str) -> Path:
        """Return a hospital's policy.toml."""
        return self.folder / f"{site}.policy.toml"

    def begin(self, sites: Sequence[str] = SITES) -> SecureSum:
        """Return the coordinator's part of a new run over these hospitals."""
        nodes = {site: self.ids[site] for site in sites}
        return SecureSum(self.training, 16, len(self.phi), nodes, {site: self.keys[site] for site in sites})

    def sum(
        self,
        run: SecureSum,
        training: str,
        server_round: int = 1,
        *,
        phi: torch.Tensor | None = None,
        over: Iterable[str] = (),
        then: Sequence[str] = (),
    ) -> Gathered:
        """Return what a round of a run brings."""
        told = wire.Instruction(self.asked.to_json(), "reptile", server_round, run=training)
        weights = wire.vector(self.phi if phi is None else phi)
        messages = {
            site: wire.instruct(self.ids[site], wire.TRAIN, told, weights, seconds=60)
            for site in sorted(over or run.sites)
        }
        return run.gather(self.grid, messages, then)

    def own(self, site: str, training: str, server_round: int = 1) -> torch.Tensor:
        """Return a hospital's own update, as only it knows it."""
        told = wire.Instruction(self.asked.to_json(), "reptile", server_round, run=training)
        message = wire.instruct(self.ids[site], wire.TRAIN, told, wire.vector(self.phi))
        ((_, reply),) = exchange(self.grid, [message], timeout=60)
        return wire.read_contribution(reply, len(self.phi)).delta.double()

    def column_sums(self, sites: Sequence[str]) -> Gathered:
        """Return the sums over numeric columns of these hospitals, in a run of their own."""
        training = exact(self.training)
        length = self.columns * columns.NUMBERS
        told = wire.Instruction(self.asked.to_json(), "reptile", column_sums=True)
        nothing = wire.vector(torch.zeros(length))
        messages = {
            site: wire.instruct(self.ids[site], wire.TRAIN, told, nothing, seconds=60) for site in sites
        }
        nodes = {site: self.ids[site] for site in sites}
        known = {site: self.keys[site] for site in sites}
        return SecureSum(training, columns.BITS, length, nodes, known).gather(self.grid, messages, [])


class Grid(InProcessGrid):
    """A grid whose coordinator says that chosen messages never came."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(client_app, federation.nodes, workers=1)
        self._federation = federation

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies, but those that are lost."""
        for reply in super().pull_messages(message_ids):
            site = SITES[reply.metadata.src_node_id - 2]
            if self._federation.lost(reply.metadata.message_type, site):
                missing = wire.refuse(reply, 2, "lost")
                missing.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
                yield missing
            else:
                yield reply


def difference(more: Gathered, fewer: Gathered) -> torch.Tensor:
    """Return what one sum has more than the other."""
    assert more.mean is not None
    assert fewer.mean is not None
    return more.mean * more.sites - fewer.mean * fewer.sites


def opens(federation: Federation, training: str, found: torch.Tensor) -> bool:
    """Return whether a difference is the victim's own update, to the rounding of one hospital's numbers."""
    own = federation.own(VICTIM, training)
    return float((found - own).abs().max() / own.abs().max()) < 0.05


@pytest.fixture
def policy() -> str:
    """Return a new hospital's policy without the floors of patients, which are tested elsewhere."""
    kept = [
        line
        for line in guarded().splitlines()
        if not line.startswith(("min-patients", "min-step", "max-weight", "min-count"))
    ]
    return FLOORS + "\n".join(kept).replace('"required"', '"optional"')


def test_the_same_weights_over_all_and_over_all_but_one(tmp_path: Path, policy: str) -> None:
    """Two honest trainings that begin with one phi."""
    federation = Federation(tmp_path, policy.replace("min-difference = 2", "min-difference = 1"))
    whole = federation.sum(federation.begin(), "first")
    less = federation.sum(federation.begin(BUT_ONE), "second")
    assert less.mean is None or not opens(federation, "first", difference(whole, less))
    assert "same-weights" in less.missing["site-1"] or "these weights" in less.missing["site-1"]


def test_a_dropout_that_never_was_and_the_same_question_again(tmp_path: Path, policy: str) -> None:
    """The coordinator says that the victim did not mask, and repeats the round as after a crash."""
    federation = Federation(tmp_path, policy)
    federation.lost = lambda kind, site: (kind, site) == (wire.TRAIN, VICTIM)
    less = federation.sum(federation.begin(), "first")
    federation.lost = lambda kind, site: False
    whole = federation.sum(federation.begin(), "first")
    assert less.sites == 4
    assert whole.mean is None or not opens(federation, "first", difference(whole, less))


def test_a_training_without_a_hospital_that_was_in_the_last(tmp_path: Path, policy: str) -> None:
    """From other weights: the difference is near the victim's update, and the operator is asked first."""
    federation = Federation(tmp_path, policy)
    assert federation.sum(federation.begin(), "first").sites == 5
    with pytest.raises(DataError, match=r"site-1, site-2, site-3, site-4: .*zamenis-hospital allow"):
        federation.sum(federation.begin(BUT_ONE), "second", phi=federation.phi + 1e-3)


def test_columns_over_all_and_over_all_but_one(tmp_path: Path, policy: str) -> None:
    """They carry no noise: the difference is the victim's exact counts, sums and sums of squares."""
    federation = Federation(tmp_path, policy, config("data.standardise=federation"))
    assert federation.column_sums(SITES).sites == 5
    with pytest.raises(DataError, match="zamenis-hospital allow"):
        federation.column_sums(BUT_ONE)


def test_trainings_without_end(tmp_path: Path, policy: str) -> None:
    """So many within a month, and no more."""
    federation = Federation(tmp_path, policy.replace("max-trainings = 1000", "max-trainings = 2"))
    sums = [federation.sum(federation.begin(), "first", number) for number in (1, 2, 3)]
    assert [one.sites for one in sums] == [5, 5, 0]
    assert "max-trainings" in sums[-1].missing["site-1"]


def test_holding_out_is_refused_by_its_key(tmp_path: Path, policy: str) -> None:
    """A run that would train over all, all less one and all less two."""
    federation = Federation(tmp_path, policy)
    held = config("experiment.shots=[1]")
    troubles = evaluation.describe(
        federation.grid, held, names={node: site for site, node in federation.ids.items()}, timeout=60
    ).troubles
    assert len(troubles) == 5
    assert "hold-out" in troubles[0]


def test_a_coordinator_that_crashed_repeats_its_round(tmp_path: Path, policy: str) -> None:
    """The same hospitals are asked the same again, in another run, and the sum is the same to the bit."""
    federation = Federation(tmp_path, policy)
    first, again = (federation.sum(federation.begin(), "first") for _ in range(2))
    assert first.sites == again.sites == 5
    assert torch.equal(first.mean, again.mean)  # type: ignore[arg-type]


def test_a_slot_that_was_given_up_is_followed_by_one_without_who_left(tmp_path: Path, policy: str) -> None:
    """Too few unmask, so the weights stay as they were; the next round of the same training has its sum."""
    federation = Federation(tmp_path, policy)
    run = federation.begin()
    federation.lost = lambda kind, site: kind == wire.UNMASK and site in SITES[2:]
    assert federation.sum(run, "first", 1, then=SITES).mean is None
    federation.lost = lambda kind, site: kind == wire.TRAIN and site == VICTIM
    rounds = [federation.sum(run, "first", number, then=SITES) for number in (2, 3, 4)]
    assert any(one.sites == 4 for one in rounds)


def test_columns_of_whoever_was_called_lost_are_not_summed_after_all(tmp_path: Path, policy: str) -> None:
    """The cohort is the same, the survivors are not: no answer unmasks, until the operators allow it."""
    federation = Federation(tmp_path, policy, config("data.standardise=federation"))
    federation.lost = lambda kind, site: (kind, site) == (wire.TRAIN, VICTIM)
    assert federation.column_sums(SITES).sites == 4
    federation.lost = lambda kind, site: False
    assert federation.column_sums(SITES).mean is None
    for site in SITES:
        with Vault(tmp_path / "secrets" / site / "vault.db").cohorts(starting()) as memory:
            waiting = memory.waiting()
            assert len(waiting) == (
                site != VICTIM
            )  # it helped to unmask no sum, so it has nothing to compare
            for one in waiting:
                memory.allow(one)
    assert federation.column_sums(SITES).sites == 5


def test_two_hospitals_may_join_and_one_may_with_its_neighbours_word(tmp_path: Path, policy: str) -> None:
    """The floor is two by default; after the word another training over the same needs none."""
    federation = Federation(tmp_path, policy)
    assert federation.sum(federation.begin(SITES[:3]), "first").sites == 3
    moved = federation.phi + 1e-3
    assert federation.sum(federation.begin(), "second", phi=moved).sites == 5
    with pytest.raises(DataError, match="zamenis-hospital allow"):
        federation.sum(federation.begin(BUT_ONE), "third", phi=moved + 1e-3)
    for site in BUT_ONE:
        with Vault(tmp_path / "secrets" / site / "vault.db").cohorts(starting()) as memory:
            (waiting,) = memory.waiting()
            assert {name for near in waiting.near for name in near.without(waiting.cohort)} == {VICTIM}
            memory.allow(waiting)
    for name, step in (("fourth", 2e-3), ("fifth", 3e-3)):
        assert federation.sum(federation.begin(BUT_ONE), name, phi=moved + step).sites == 4


def test_the_word_does_not_cover_the_same_weights(tmp_path: Path, policy: str) -> None:
    """What would be exact stays refused; another seed begins from other weights."""
    federation = Federation(tmp_path, policy.replace("min-difference = 2", "min-difference = 1"))
    assert federation.sum(federation.begin(), "first").sites == 5
    assert federation.sum(federation.begin(BUT_ONE), "second").mean is None
    assert federation.sum(federation.begin(BUT_ONE), "second", phi=federation.phi + 1e-3).sites == 4


def test_a_run_that_trains_over_others_than_it_named_is_refused(tmp_path: Path, policy: str) -> None:
    """Everybody is named when keys are asked for; who was not holds no share."""
    federation = Federation(tmp_path, policy.replace("min-cohort = 3", "min-cohort = 2"))
    run = federation.begin()
    run._told.identities = {site: federation.keys[site] for site in BUT_ONE}
    found = federation.sum(run, "first")
    assert found.mean is None
    assert str(refusal(Reason.NOT_NAMED)) in " ".join(found.missing.values())


def test_hospitals_that_hold_out_are_asked_what_they_allowed(tmp_path: Path, policy: str) -> None:
    """Where the policy says so, cohorts that differ by one are what a run is for."""
    federation = Federation(tmp_path, policy.replace("hold-out = false", "hold-out = true"))
    sums = [federation.sum(federation.begin(sites), "first") for sites in (SITES, BUT_ONE, SITES)]
    assert [one.sites for one in sums] == [5, 4, 5]
