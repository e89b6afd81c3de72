"""What the coordinator sends in secure rounds, to whom, for how long, and who sits out for not answering."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message

from client.site import NodeConfig
from common import wire
from common.bounds import layout_of
from common.secagg.identity import Peer, Roster
from server.rehearsal import Rehearsal
from server.secure import GOODBYE
from tests.server.rounds import NEVER, Lossy, Lost, Make, Round, settings


class Heard(Lossy):
    """Notes how long each message may take, by kind."""

    def __init__(self, nodes: list[NodeConfig], lost: Lost) -> None:
        super().__init__(nodes, lost)
        self.seconds: dict[str, set[float]] = {}

    def __enter__(self) -> Heard:
        return self

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Note, and pass on."""
        messages = list(messages)
        for message in messages:
            self.seconds.setdefault(message.metadata.message_type, set()).add(message.metadata.ttl)
        return super().push_messages(messages)


def test_every_message_ends_with_its_round(five: Make) -> None:
    """Keys, dealings, training and unmasking after round-timeout; the end of a run after ten seconds."""
    nodes, keys = five()
    with Heard(nodes, NEVER) as grid:
        each = Round(grid, settings("training.round-timeout=30"), keys)
        grid.seconds = {}
        assert each.securely(1).sites == 5
        kinds = (wire.ADVERTISE, wire.DEAL, wire.UNMASK)
        assert {kind: grid.seconds[kind] for kind in kinds} == {kind: {30.0} for kind in kinds}
        each.secure.finish(grid)
        assert grid.seconds[wire.FINISH] == {GOODBYE}
        grid.seconds = {}
        layout = layout_of(each.training, 16, len(each.phi), len(each.nodes))
        roster = Roster({site: Peer(key) for site, key in keys.items()})
        rehearsal = Rehearsal(grid, each.nodes, keys, roster, layout, seconds=25.0)
        assert rehearsal.find_broken() == []
        rehearsed = (wire.ADVERTISE, wire.DEAL, wire.REHEARSE, wire.FINISH)
        assert grid.seconds == {kind: {25.0} for kind in rehearsed}


def test_a_run_begins_with_everybodys_key_and_its_cohorts_dealings(five: Make) -> None:
    """So that who waits for an operator is known before anything is summed; nobody is asked again."""
    nodes, keys = five()
    with Lossy(nodes, NEVER) as grid:
        each = Round(grid, settings(), keys)
        cohort = sorted(each.nodes)[:4]
        asked = {site: message for site, message in each.instructions().items() if site in cohort}
        grid.sent.clear()
        assert each.secure.gather(grid, asked, cohort).sites == 4
        assert sorted(site for kind, site in grid.sent if kind == wire.ADVERTISE) == sorted(each.nodes)
        assert sorted(site for kind, site in grid.sent if kind == wire.DEAL) == cohort
        grid.sent.clear()
        following = {site: each.instructions(2)[site] for site in cohort}
        assert each.secure.gather(grid, following, []).sites == 4
        assert {kind for kind, _ in grid.sent} == {wire.TRAIN, wire.UNMASK}


def test_whoever_deals_and_never_masks_sits_out(five: Make) -> None:
    """Whatever it says instead; it is named, and back after its time."""
    nodes, keys = five()
    with Lossy(nodes, lambda kind, site, turn: (kind, site) == (wire.TRAIN, "site-3")) as grid:
        each = Round(grid, settings(), keys)
        found = [each.securely(server_round) for server_round in range(1, 5)]
        barred = [one.barred.get("site-3", "") for one in found]
        assert barred[:2] == ["", ""]
        assert "it dealt and did not mask" in barred[-1]
        assert found[-1].sites == 4
        assert all("site-3" in one.missing for one in found)
        grid.lost = NEVER
        assert [each.securely(server_round).sites for server_round in range(5, 9)][-1] == 5
