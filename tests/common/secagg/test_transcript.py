"""Known answers for a whole slot: from fixed secrets to the mean, every message byte for byte."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.secagg import agreement, dealing, identity, shamir, site
from common.secagg.encoding import dump
from tests.common.secagg.federation import Federation, contribution, layout_for

GOLDEN = Path(__file__).parent / "golden" / "transcript.json"


def transcript(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return a slot of four sites, the last of which drops, when secrets are SHAKE-256 of a counter."""
    drawn = 0

    def counted(size: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(drawn.to_bytes(8, "big")).digest(size)

    for module in (agreement, dealing, identity, shamir, site):
        monkeypatch.setattr(module, "fresh", counted)
    federation, layout = Federation(4), layout_for(4, parameters=6, max_weight=2)
    holders = federation.holders()
    requests = federation.requests(holders, layout)
    slot = federation.slot(holders, requests)
    masked = []
    for seed, name in enumerate(federation.names[:3]):
        masked.append(
            federation[name].mask(requests[name], replace(contribution(layout, 7), weight=1 + seed % 2))
        )
        slot.add(masked[-1])
    asked = slot.request()
    answer = federation["h000"].unmask(asked)
    total = federation.finish(slot, federation.names[:3]).total
    return {
        "advertisement": dump(holders.advertisements[0]).hex(),
        "holders digest": holders.digest(federation.roster.keys(holders.sites)).hex(),
        "manifest": dump(slot.plan.manifests[0]).hex(),
        "sealed share of h000 to h001": requests["h001"].sealed["h000"].hex(),
        "D": slot.plan.digest().hex(),
        "masked": dump(masked[0]).hex(),
        "unmask request": dump(asked).hex(),
        "unmask answer": dump(answer).hex(),
        "state": hashlib.sha256(federation["h000"].stored).hexdigest(),
        "mean": total.mean.tolist(),
        "weight": total.weight,
        "metrics": dict(total.metrics),
    }


def test_a_slot_never_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change here is a change of the protocol: raise `encoding.VERSION`, then write the new answers."""
    assert transcript(monkeypatch) == json.loads(GOLDEN.read_text())
