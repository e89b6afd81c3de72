"""What hospitals' desks make of an update before it is masked: clipped, and rounded by keys of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

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
