"""A round that too few hospitals can make waits for those who are away, and is never spent on nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from flwr.common.constant import ErrorCode

from client.policy import EVERYTHING
from client.site import NodeConfig
from common import wire
from common.config import Config
from common.errors import TooFewError
from common.initialise import shared_weights
from common.weights import pack
from server import evaluation, strategy
from server.app import CHECKPOINT, MetaTrained, common_input_shape, meta_train
from tests.server.rounds import NEVER, Lossy, Lost, Make, settings

ROADS = pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for hospitals often."""
    monkeypatch.setattr(strategy, "PAUSES", (0.01,))


class Federation:
    """Three hospitals, and trainings over them in which messages are lost."""

    def __init__(self, nodes: Sequence[NodeConfig], keys: Mapping[str, bytes], folder: Path) -> None:
        self.nodes, self.keys, self.folder = list(nodes), keys, folder
        self.sent: list[tuple[str, str]] = []

    def train(
        self, name: str, config: Config, lost: Lost, *, secure: bool, code: int = ErrorCode.NODE_UNAVAILABLE
    ) -> MetaTrained:
        """Train, or resume the training `name`."""
        with Lossy(self.nodes, lost, code) as grid:
            sites = evaluation.describe(grid, config).all_of_them()
            initial = pack(shared_weights(config, "reptile", common_input_shape(sites.values())))
            grid.sent = self.sent
            self.sent.clear()
            keys = self.keys if secure else None
            return meta_train(grid, config, "reptile", sites, initial, self.folder / name, identities=keys)

    def forget(self) -> None:
        """Take from the hospitals what they remember, as if a training had never been."""
        for node in self.nodes:
            for path in Path(str(node["secrets"])).glob("vault.db*"):
                path.unlink()

    def allow(self, **policy: object) -> None:
        """Give every hospital a policy."""
        path = self.folder / "policy.toml"
        path.write_text(EVERYTHING.model_copy(update=policy).to_toml())
        self.nodes = [{**node, "policy": str(path)} for node in self.nodes]


@pytest.fixture
def three(five: Make, tmp_path: Path) -> Federation:
    """Return three hospitals."""
    return Federation(*five(3), tmp_path)


def needing(count: int, *over: str) -> Config:
    """Return the configuration of a training whose rounds need so many hospitals."""
    return settings(f"training.min-cohort={count}", *over)


def sites(end: MetaTrained) -> list[int]:
    """Return how many took part, round by round."""
    return [entry["sites"] for entry in end.history]


class Away:
    """One hospital's node, which goes away as it is asked to do something, and misses so many messages."""

    def __init__(self, kind: str, turn: int, messages: int) -> None:
        self.kind, self.turn, self.messages, self.gone = kind, turn, messages, False

    def __call__(self, kind: str, site: str, turn: int) -> bool:
        """Say whether a message is lost."""
        self.gone |= (kind, site, turn) == (self.kind, "site-2", self.turn)
        lost = self.gone and site == "site-2" and self.messages > 0
        self.messages -= lost
        return lost


FOREVER = 10**9


@ROADS
@pytest.mark.parametrize("least", [0, 3])
def test_a_hospital_that_comes_back_in_time_costs_no_round(
    three: Federation, secure: bool, least: int
) -> None:
    """It is away for four tries, in the middle: every round has everybody, and the end has the same bits."""
    undisturbed = three.train("undisturbed", needing(least), NEVER, secure=secure)
    three.forget()
    end = three.train("again", needing(least), Away(wire.TRAIN, 2, 4), secure=secure)
    assert sites(end) == [3] * 4
    assert torch.equal(end.phi, undisturbed.phi)


def test_a_hospital_that_is_away_at_first_is_trained_with_from_the_first_round(three: Federation) -> None:
    """Nobody is asked to train before all that the round needs have dealt: no weights go to fewer."""
    end = three.train("late", needing(3), Away(wire.ADVERTISE, 1, 3), secure=True)
    assert sites(end) == [3] * 4
    assert three.sent.count((wire.TRAIN, "site-1")) == 4


def test_a_round_waits_for_one_that_sits_out_and_is_not_spent(three: Federation) -> None:
    """Mute twice at unmasking, it sits four slots out: these pass within the third round, which needs it."""

    def mute(kind: str, site: str, turn: int) -> bool:
        return (kind, site) == (wire.UNMASK, "site-2") and turn <= 2

    end = three.train("mute", needing(3), mute, secure=True)
    assert sites(end) == [0, 0, 3, 3]


def test_who_comes_too_late_to_deal_is_told_of_truly_and_takes_part_in_the_slot_after(
    three: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """Two suffice, so that nobody waits: the third was not asked to train, and is not said to be silent."""
    three.allow(min_cohort=2, low_threshold=True)
    end = three.train("two", needing(2), Away(wire.ADVERTISE, 1, 2), secure=True)
    assert sites(end)[-1] == 3
    assert "site-2 is left out: came too late to deal for this slot" in caplog.text
    assert wire.SILENT not in caplog.text


@ROADS
def test_a_hospital_that_stays_away_stops_the_run_which_resumes_to_the_same_bits(
    three: Federation, secure: bool
) -> None:
    """The round's time over, the run ends with who is away; no round is lost."""
    undisturbed = three.train("undisturbed", needing(3), NEVER, secure=secure)
    three.forget()
    config = needing(3, "training.round-timeout=2")
    with pytest.raises(TooFewError) as caught:
        three.train("again", config, Away(wire.TRAIN, 3, FOREVER), secure=secure)
    told = str(caught.value)
    assert "round 3: of 3 hospitals" in told
    assert "site-2: its node is not connected." in told
    assert "resume the run when they are back" in told
    end = three.train("again", needing(3), NEVER, secure=secure)
    assert sites(end) == [3] * 4
    assert torch.equal(end.phi, undisturbed.phi)


def strangers(three: Federation) -> None:
    """Let no hospital have confirmed another."""
    for node in three.nodes:
        path = Path(str(node["secrets"])) / "peers.toml"
        path.write_text(path.read_text().replace("confirmed = true", "confirmed = false"))


def strict(three: Federation) -> None:
    """Let every hospital refuse plain updates."""
    three.allow(secure_aggregation="required")


@pytest.mark.parametrize(
    ("prepare", "secure", "reason"),
    [
        (
            strangers,
            True,
            "too few of the others are confirmed there, which `zamenis-hospital confirm` mends: a sum could "
            "cover fewer honest sites",
        ),
        (strict, False, "this hospital's policy does not allow it (secure-aggregation in its policy.toml)"),
    ],
)
def test_a_run_that_hospitals_refuse_ends_in_its_first_round_with_their_reasons(
    three: Federation,
    prepare: Callable[[Federation], None],
    secure: bool,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One try, and nothing is kept; once a person has put that right the run goes on.

    The error is all that whoever watches is told: how a sum fails is for the log alone.
    """
    allowed = list(three.nodes)
    three.allow(min_cohort=3)
    prepare(three)
    with caplog.at_level(logging.INFO, "zamenis"), pytest.raises(TooFewError) as caught:
        three.train("refused", needing(2), NEVER, secure=secure)
    told = [one for one in caplog.records if one.name == "zamenis.server" and one.levelno >= logging.WARNING]
    assert told == []
    for detail in ("a slot is given up: ", "most of the hospitals miss it, so none is to blame"):
        assert (detail in caplog.text) == secure
    assert "round 1: of 3 hospitals 0 took part, and a round needs 2.\n  site-1, site-2, site-3: " in str(
        caught.value
    )
    assert reason in str(caught.value)
    assert "put that right, then resume the run" in str(caught.value)
    assert not (three.folder / "refused" / CHECKPOINT).exists()
    assert three.sent.count((wire.TRAIN, "site-1")) == (0 if secure else 1)
    three.nodes = allowed
    assert sites(three.train("refused", needing(2), NEVER, secure=False)) == [3] * 4


def test_a_run_in_which_nobody_ever_answers_is_no_success(three: Federation) -> None:
    """Silence may pass, so that rounds go on; after the last the run ends with the reason."""
    with pytest.raises(TooFewError, match="No round has changed the model") as caught:
        three.train(
            "silent",
            needing(2),
            lambda kind, site, turn: kind == wire.TRAIN,
            secure=False,
            code=ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        )
    assert "site-1, site-2, site-3: did not answer in time." in str(caught.value)
    assert three.sent.count((wire.TRAIN, "site-1")) == 4
