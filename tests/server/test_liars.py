"""One hospital that lies or breaks neither stops a secure training nor steers it far, and is named."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import torch

from client.app import app as client_app
from client.policy import EVERYTHING
from common import wire
from common.initialise import shared_weights
from common.secagg.layout import Layout
from common.weights import pack
from server import evaluation
from server.app import common_input_shape, meta_train
from simulation.attack.liar import LyingGrid, shifted
from tests.server.rounds import NEVER, Lossy, Make, Round, settings


def test_whoever_masks_and_never_unmasks_sits_out(five: Make) -> None:
    """Of three hospitals one goes mute after masking, always: it costs two rounds, then one in a while."""
    nodes, keys = five(3)
    with Lossy(nodes, lambda what, site, turn: (what, site) == (wire.UNMASK, "site-3")) as grid:
        each = Round(grid, settings(), keys)
        rounds = [each.securely(server_round) for server_round in range(1, 8)]
    assert [one.sites for one in rounds] == [0, 0, 2, 2, 2, 0, 2]
    assert "given up: site-3: fewer answers" in rounds[0].missing["site-1"]
    assert rounds[2].barred == {"site-3": "sits out 4 slots: it masked and did not unmask"}


def garbage(layout: Layout, vector: bytes) -> bytes:
    """Return bytes that are nobody's vector."""
    return secrets.token_bytes(len(vector))


def test_random_bytes_for_a_masked_vector_are_found_out(five: Make) -> None:
    """The sum is impossible once; who sent them is found on a vector that everybody knows, and left out."""
    nodes, keys = five()
    with LyingGrid(client_app, nodes, "site-2", garbage, careful=False) as grid:
        each = Round(grid, settings(), keys)
        rounds = [each.securely(server_round) for server_round in (1, 2, 3)]
    assert [one.sites for one in rounds] == [0, 4, 4]
    assert rounds[0].remarks == ["the sum was impossible; a rehearsal on a public vector found site-2"]
    assert list(rounds[1].barred) == ["site-2"]
    assert "takes no more part" in rounds[1].missing["site-2"]


def test_who_lies_in_sums_alone_is_not_found_and_nobody_else_is_blamed(five: Make) -> None:
    """A rehearsal names nobody then, and says so; the honest stay in."""
    nodes, keys = five()
    with LyingGrid(client_app, nodes, "site-2", garbage) as grid:
        each = Round(grid, settings(), keys)
        rounds = [each.securely(server_round) for server_round in (1, 2)]
    assert [one.sites for one in rounds] == [0, 0]
    assert "found nobody" in rounds[0].remarks[0]
    assert not rounds[1].barred


def test_one_hospital_does_not_get_the_cohorts_budget(five: Make, tmp_path: Path) -> None:
    """It shifts every sum by much of what its check allows, and that follows the honest updates' length."""
    nodes, keys = five()
    config = settings('experiment.algorithms=["fomaml"]', "training.rounds=10")

    def push(layout: Layout, vector: bytes) -> bytes:
        shift = np.zeros(layout.parameters)
        shift[0] = 0.4 * layout.sites * min(layout.clip_norm, layout.coordinate_range)
        return shifted(layout, vector, shift)

    def honestly(layout: Layout, vector: bytes) -> bytes:
        return vector

    lengths = []
    for lie in (honestly, push):
        with LyingGrid(client_app, nodes, "site-2", lie) as grid:
            sites = evaluation.describe(grid, config).all_of_them()
            initial = pack(shared_weights(config, "fomaml", common_input_shape(sites.values())))
            folder = tmp_path / lie.__name__
            end = meta_train(grid, config, "fomaml", sites, initial, folder, identities=keys)
        lengths.append([one["delta-norm"] for one in end.history])
    honest, steered = lengths
    assert steered[-1] < 3 * honest[-1], (honest, steered)


def test_a_hospital_clips_to_its_own_bound_whatever_the_coordinator_asks(five: Make, tmp_path: Path) -> None:
    """Its max-norm is below the round's clip: it clips lower, and still says that it was within the clip."""
    nodes, keys = five(3)
    policy = tmp_path / "policy.toml"
    policy.write_text(EVERYTHING.model_copy(update={"max_norm": 1e-3}).to_toml())
    nodes = [{**node, "policy": str(policy)} for node in nodes]
    with Lossy(nodes, NEVER) as grid:
        each = Round(grid, settings("training.clip-norm=10.0"), keys)
        plain, secure = each.plainly(sorted(each.nodes)), each.securely()
    for found in (plain, secure):
        assert found.mean is not None
        assert 0 < float(torch.linalg.vector_norm(found.mean)) < 1.01e-3
        assert (found.within, found.sites) == (3, 3)
