"""One slot of secure aggregation in memory: the sites' and the coordinator's own transitions, no network.

What comes out is what a coordinator holds after a round, and nothing of what only sites know.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from common import seeds
from common.bounds import layout_of
from common.config import Config
from common.secagg import aggregator, site
from common.secagg.encoding import dump
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.layout import Layout
from common.secagg.messages import Payload
from common.secagg.numbers import Policy
from common.secagg.packing import Packed
from common.secagg.quantise import Contribution
from common.secagg.site import Member
from common.sections import Training

Vector = Float[Tensor, "parameter"]


@dataclass(frozen=True)
class Sight:
    """What the coordinator holds of one round."""

    phi: Vector
    plain: Mapping[str, Vector] = field(repr=False)
    """Each site's delta: only where secure aggregation is off."""
    masked: Mapping[str, Vector] = field(repr=False)
    """Each site's masked vector, read as if it were a delta."""
    mean: Vector = field(repr=False)
    """The cohort's mean delta, from the unmasked sum."""


def hold(config: Config, training: Training, phi: Vector, deltas: Mapping[str, Vector], name: str) -> Sight:
    """Take the sites' deltas through a slot of the protocol; `name` tells rounding streams apart.

    Raises SecAggError where the cohort is too small for the sites' policy (three sites).
    """
    run = secrets.token_hex(16)
    members = _members(sorted(deltas))
    roster = next(iter(members.values())).roster
    states = {name: site.join(member, run, epoch=1) for name, member in members.items()}
    holders = aggregator.name_holders(run, 1, [site.advertise(states[one], members[one]) for one in members])
    dealings = {}
    for one, member in members.items():
        states[one], dealings[one] = site.deal(states[one], member, holders)
    payload = Payload.of(phi.numpy().tobytes(), config.to_json().encode())
    layout = layout_of(training, config.secure_aggregation.bits, len(phi), len(members))
    requests = aggregator.mask_requests(holders, dealings.values(), payload, layout)
    slot = aggregator.Slot(roster, holders, next(iter(requests.values())).plan)
    masked = {}
    for one, member in members.items():
        contribution = Contribution(
            delta=deltas[one].numpy(),
            weight=1,
            metrics={"loss-sum": 0.0, "episodes": 1.0, "within": 1.0},
            rounding_key=sha256(dump(("rounding", seeds.derive(config.seed, "attack", name, one)))).digest(),
        )
        states[one], sent = site.mask(states[one], member, requests[one], payload, contribution)
        slot.add(sent)
        masked[one] = read_as_delta(layout, sent.vector)
    asked = slot.request()
    for one, member in members.items():
        states[one], answer = site.unmask(states[one], member, asked)
        slot.answer(answer)
    return Sight(phi, dict(deltas), masked, torch.from_numpy(slot.finish().total.mean).float())


def read_as_delta(layout: Layout, packed: bytes) -> Vector:
    """Return a site's bytes as the delta that they would be if no mask lay on them."""
    words = np.zeros(layout.words, np.uint64)
    Packed(layout.words, layout.word_bytes, packed).add_to(slice(None), words)
    shifts = np.arange(layout.lanes, dtype=np.uint64)[:, None] * np.uint64(layout.width)
    lowest = np.uint64((1 << layout.width) - 1)
    numbers = ((words >> shifts) & lowest).reshape(-1)[: layout.parameters].astype(np.float64)
    return torch.from_numpy((numbers - layout.levels / 2) * layout.step).float()


def _members(sites: list[str]) -> dict[str, Member]:
    """Return sites with keys of their own, all confirmed by each other."""
    identities = {name: Identity.make() for name in sites}
    roster = Roster({name: Peer(each.public, confirmed=True) for name, each in identities.items()})
    return {name: Member(name, identities[name], roster, Policy()) for name in sites}
