"""What hospitals' desks make of an update before it is masked: clipped, and rounded by keys of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from client.node import desk_of
from common import wire
from common.secagg.encoding import dump
from common.secagg.layout import Layout, Metric
from tests.client.desks import PARAMETERS, Desks


class Alike(Desks):
    """Hospitals that all learn the same."""

    def delta(self, name: str) -> torch.Tensor:
        """Return the same for all, off every level."""
        return torch.linspace(-0.2, 0.2, PARAMETERS)


def test_no_two_hospitals_and_no_two_rounds_round_alike(tmp_path: Path) -> None:
    """Five of the same update: rounded alike, their mean would be a whole number of steps everywhere.

    Another round of the same weights rounds otherwise; the same round again, as after a crash, does not.
    """
    desks = Alike(tmp_path, 5)
    first = desks.mean(1)
    steps = first / desks.layout.step
    assert np.abs(steps - np.round(steps)).max() > 0.1
    desks.server_round = 2
    assert not np.array_equal(desks.mean(2), first)
    desks.server_round = 1
    assert np.array_equal(desks.mean(3), first)


def test_a_hospital_clips_what_it_sends(tmp_path: Path) -> None:
    """An update of twice the round's norm comes out half as long, in the same direction."""
    desks = Alike(tmp_path, 5)
    delta = desks.delta("h000").numpy().astype(np.float64)
    desks.clip_norm = float(np.linalg.norm(delta)) / 2
    assert np.abs(desks.mean(1) - delta / 2).max() <= desks.layout.error_bound(5, 5)


class Short(Desks):
    """Hospitals whose updates point anywhere and are of lengths 0.1, 0.125, 0.15 and so on."""

    forged: Layout | None = None

    def delta(self, name: str) -> torch.Tensor:
        """Return a hospital's own update."""
        number = self.names.index(name)
        drawn: torch.Tensor = torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(number))
        return drawn * ((0.1 + 0.025 * number) / float(drawn.norm()))

    @property
    def layout(self) -> Layout:
        """The coordinator's own choice, where it has one."""
        return self.forged or super().layout


@pytest.mark.parametrize("column_sums", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        {"clip_norm": 0.11},
        {"coordinate_range": 0.01},
        {"bits": 8},
        {"sites": 6},
        {"max_weight": 2},
        {"metrics": (Metric("loss-sum", 0.0, 0.1), Metric("episodes", 0.0, 1.0), Metric("within", 0.0, 1.0))},
    ],
    ids=lambda one: next(iter(one)),
)
def test_a_hospital_takes_no_bounds_but_those_of_the_message(
    tmp_path: Path, other: dict[str, Any], column_sums: bool
) -> None:
    """Clipped anywhere between the shortest and the next, five updates sum to x + C u, so two sums give x.

    Coordinates, losses and weights that are cut at bounds of the plan's tell hospitals apart alike.
    """
    desks = Short(tmp_path, 5, column_sums=column_sums)
    desks.forged = replace(desks.layout, **other)
    holders = desks.holders()
    requests = desks.requests(holders, desks.dealings(holders))
    reply = desks.train("h000", requests["h000"])
    assert reply.has_error()
    assert "the vector's bounds are not those" in wire.words_of(reply)
    assert desks.trained == []


def test_nobody_else_knows_how_a_hospital_rounds(tmp_path: Path) -> None:
    """On a coarse grid a coordinate is one level or the next, by chance; who knows the chance reads it.

    Three hospitals with the same update round by three keys of which the message tells none: another key of
    h000's own, and nothing else, moves the sum.
    """
    desks = Alike(tmp_path, 3)
    first = desks.mean(1)
    desks.own = 7
    assert not np.array_equal(desks.mean(2), first)


@pytest.mark.parametrize(("words", "told"), [("h000: it has too few", "h000: it has too few"), ("", "")])
def test_why_a_worker_does_not_train_reaches_the_coordinator_and_masks_nothing(
    tmp_path: Path, words: str, told: str
) -> None:
    """Its code and its words as they are, as a reply to the message that asked; the slot stays open."""
    desks = Desks(tmp_path, 3)
    holders = desks.holders()
    request = desks.requests(holders, desks.dealings(holders))["h000"]
    asked = wire.secure(desks.instruction(), wire.Secured(desks.run, request=dump(request)))

    def refuses(plain: Message) -> Message:
        return wire.refuse(plain, wire.TOO_SMALL, words)

    reply = desk_of(desks.homes["h000"]).answer(asked, refuses)
    assert (reply.error.code, reply.error.reason) == (wire.TOO_SMALL, told)
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert desks.masked("h000", request).vector
