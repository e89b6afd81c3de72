"""What crosses the wire arrives as it was sent, and what should not have been sent is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common import wire
from common.errors import WireError
from common.features import Features
from common.inner_loop import InnerLoop


@pytest.fixture(autouse=True)
def identity() -> None:
    """Give this process an identity, which Flower's messages need."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def instruction(phi: torch.Tensor | None = None) -> Message:
    """Return a message that asks for training."""
    content = wire.Instruction(config="{}", algorithm="reptile", server_round=3)
    return wire.instruct(2, wire.TRAIN, content, None if phi is None else wire.vector(phi))


def test_an_instruction_arrives() -> None:
    """Its fields and its weights, bit for bit."""
    phi = torch.tensor([1.5, -0.0, 3e-42])
    message = instruction(phi)
    assert wire.read_instruction(message).server_round == 3
    assert torch.equal(wire.read_phi(message, 3), phi)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server_round", math.nan),
        ("server_round", 1.5),
        ("server_round", -1),
        ("server_round", True),
        ("shot", -2),
        ("clip_norm", math.inf),
        ("clip_norm", math.nan),
        ("column_sums", 1),
        ("run", "r" * 129),
        ("run", b"r"),
        ("config", "{" * (2**18 + 1)),
        ("statistics", "[" * (2**22 + 1)),
        ("unknown", 1),
        ("draws", None),
    ],
)
def test_an_instruction_that_is_none_is_refused_by_its_field(name: str, value: Any) -> None:
    """Of another type, out of range, too long, unknown or missing: before anything is made of it."""
    message = instruction()
    fields = message.content.config_records["instruction"]
    if value is None:
        del fields[name]
    else:
        fields[name] = value
    with pytest.raises(WireError, match=f"^{name} of an instruction is missing, unknown"):
        wire.read_instruction(message)


def test_a_contribution_arrives() -> None:
    """The delta and the sums."""
    sent = wire.Contribution(torch.randn(5), 0.5, 2, 17, within=True)
    reply = wire.reply_contribution(instruction(), sent)
    got = wire.read_contribution(reply, 5)
    assert torch.equal(got.delta, sent.delta)
    assert (got.loss_sum, got.episodes, got.weight, got.within) == (0.5, 2, 17, True)


CENSUS = wire.Census(5, (20, None), {"a": (10, 10)}, {})
FEATURES = Features(("age",), (("sex", ("f", "m")),), (("bits", 8),), (("age", ("0.0",)),))


@pytest.mark.parametrize(("shape", "features"), [((11,), FEATURES), ((1, 8, 8), None)])
def test_a_description_arrives(shape: tuple[int, ...], features: Features | None) -> None:
    """A table's with its features, and images' without."""
    sent = wire.Description("site", shape, "digest", CENSUS, 0, features)
    assert wire.read_description(wire.reply_description(instruction(), sent)) == sent


@pytest.mark.parametrize(
    "features",
    [
        FEATURES,
        Features(("x" * 200,)),
        Features(("age",), (("sex", ("f", 3)),)),  # type: ignore[arg-type]
        {"numeric": "age"},
        [],
    ],
)
def test_features_that_are_none_or_not_of_the_shape_are_refused(features: Any) -> None:
    """A hospital's words are bounded, and agree with each other."""
    with pytest.raises(WireError, match="not what was asked for"):
        wire.read_description(
            wire.reply_description(
                instruction(), wire.Description("site", (10,), "digest", CENSUS, 0, features)
            )
        )


def test_a_recipe_arrives() -> None:
    """And one of another version is refused."""
    recipe = InnerLoop(steps=5, lr=0.1, scope="adapter")
    assert wire.decode_recipe(wire.encode_recipe(recipe)) == recipe
    with pytest.raises(WireError, match="recipe"):
        wire.decode_recipe('{"moves": 3}')


def test_a_judgement_arrives() -> None:
    """Every array and every fact."""
    sent = wire.Judgement({"auroc": np.array([0.5, 0.75])}, {"auroc": np.array([0.6])}, 0.5, 0.25)
    got = wire.read_judgement(wire.reply_judgement(instruction(), sent))
    assert got.draws["auroc"].tolist() == [0.5, 0.75]
    assert got.replicates["auroc"].tolist() == [0.6]
    assert (got.hurt, got.fell_back, got.left_out) == (0.5, 0.25, "")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (wire.vector(torch.zeros(4)), "5 parameters"),
        (wire.vector(torch.tensor([0.0, 1.0, float("nan"), 0.0, 0.0])), "finite"),
        (wire.vector(torch.tensor([0.0, 1.0, float("inf"), 0.0, 0.0])), "finite"),
        (ArrayRecord({"vector": Array(np.zeros(5))}), "float32"),
        (ArrayRecord({"vector": Array("float32", (5,), wire.RAW, b"garbage")}), "5 parameters"),
        (ArrayRecord({"other": Array(np.zeros(5, np.float32))}), "5 parameters"),
    ],
)
def test_a_delta_that_is_not_one_is_refused(record: ArrayRecord, words: str) -> None:
    """Wrong length, NaN, infinity, wrong type, garbage, another name."""
    sums = MetricRecord({"loss-sum": 0.1, "episodes": 1, "weight": 3, "within": 1})
    reply = Message(RecordDict({"delta": record, "sums": sums}), reply_to=instruction())
    with pytest.raises(WireError, match=words):
        wire.read_contribution(reply, 5)


def test_sums_that_cannot_be_are_refused() -> None:
    """Missing, or counts that are not positive."""
    delta = wire.vector(torch.zeros(5))
    for sums, words in (
        (MetricRecord({"loss-sum": 0.1}), "sums"),
        (MetricRecord({"loss-sum": 0.1, "episodes": 0, "weight": 3, "within": 1}), "positive"),
        (MetricRecord({"loss-sum": 0.1, "episodes": 1, "weight": 3, "within": 2}), "0 or 1"),
    ):
        reply = Message(RecordDict({"delta": delta, "sums": sums}), reply_to=instruction())
        with pytest.raises(WireError, match=words):
            wire.read_contribution(reply, 5)
