"""One hospital that lies or breaks neither stops a secure training nor steers it far, and is named."""

from __future__ import annotations

from common import wire
from tests.server.rounds import Lossy, Make, Round, settings


def test_whoever_masks_and_never_unmasks_sits_out(five: Make) -> None:
    """Of three hospitals one goes mute after masking, always: it costs two rounds, then one in a while."""
    nodes, keys = five(3)
    with Lossy(nodes, lambda what, site, turn: (what, site) == (wire.UNMASK, "site-3")) as grid:
        each = Round(grid, settings(), keys)
        rounds = [each.securely(server_round) for server_round in range(1, 8)]
    assert [one.sites for one in rounds] == [0, 0, 2, 2, 2, 0, 2]
    assert "given up: site-3: fewer answers" in rounds[0].missing["site-1"]
    assert rounds[2].barred == {"site-3": "sits out 4 slots: it masked and did not unmask"}
