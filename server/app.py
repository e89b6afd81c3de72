"""One meta-training: from a configuration and connected sites to phi, resumable after every round."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from common.config import Config
from common.errors import DataError
from common.initialise import learner_for
from common.weights import Weights
from common.wire import Description
from server import checkpoint, columns, outer_loop
from server.checkpoint import Checkpoint
from server.cohort import least
from server.groups import groups_of
from server.secure import SecureSum
from server.strategy import MetaStrategy

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class MetaTrained:
    """The end of a meta-training."""

    phi: outer_loop.Vector
    history: Sequence[Mapping[str, Any]]
    statistics: str = ""
    """`common.columns.Statistics` that phi's sites standardised numeric columns with, as JSON; or empty."""


def meta_train(
    grid: Grid,
    config: Config,
    algorithm: str,
    sites: Mapping[str, tuple[int, Description]],
    initial: outer_loop.Vector,
    directory: Path,
    on_round: Callable[[Checkpoint], None] = lambda _: None,
    *,
    identities: Mapping[str, bytes] | None = None,
) -> MetaTrained:
    """Run one meta-training over `sites`, from its last checkpoint in `directory` where there is one.

    `on_round` takes that checkpoint, and the one of each round from there on.
    It begins with what its sites standardise numeric columns with, where they have any that the federation
    standardises. With `identities`, every site's public key, all is aggregated securely.
    """
    path = directory / CHECKPOINT
    training = identity(config, algorithm, {site: told.digest for site, (_, told) in sites.items()})
    nodes = {site: node for site, (node, _) in sites.items()}
    groups = groups_of(config, algorithm, nodes)
    if path.exists():
        begun = checkpoint.load(path, identity=training)
        on_round(begun)
    else:
        begun = _begin(grid, config, algorithm, sites, initial, identities)
        if begun.statistics:  # asked for once: a second sum could differ from the first by one hospital
            checkpoint.save(path, begun, identity=training)

    def keep(now: Checkpoint) -> None:
        checkpoint.save(path, now, identity=training)
        on_round(now)

    strategy = MetaStrategy(
        config,
        algorithm,
        nodes,
        begun.state,
        list(begun.history),
        keep,
        _secure(config, algorithm, groups or [sorted(nodes)], nodes, len(initial), identities),
        begun.run,
        begun.statistics,
        groups,
    )
    strategy.start(grid)
    return MetaTrained(strategy.state.phi, strategy.history, begun.statistics)


def _begin(
    grid: Grid,
    config: Config,
    algorithm: str,
    sites: Mapping[str, tuple[int, Description]],
    initial: outer_loop.Vector,
    identities: Mapping[str, bytes] | None,
) -> Checkpoint:
    """Return a meta-training before its first round."""
    nodes = {site: node for site, (node, _) in sites.items()}
    count = next((told.columns for _, told in sites.values()), 0)
    summed = columns.statistics(grid, config, algorithm, nodes, count, identities) if count else ""
    return Checkpoint(outer_loop.init(initial), [], summed, secrets.token_hex(16))


def _secure(
    config: Config,
    algorithm: str,
    groups: Sequence[Sequence[str]],
    nodes: Mapping[str, int],
    parameters: int,
    identities: Mapping[str, bytes] | None,
) -> list[SecureSum]:
    """Return one secure sum for each group; none without identities."""
    if not identities:
        return []
    training, bits = config.training_of(algorithm), config.secure_aggregation.bits
    fewest = least(training, nodes) if len(groups) == 1 else 0  # a group may lack some: the others have sums
    return [
        SecureSum(
            training,
            bits,
            parameters,
            {site: nodes[site] for site in group},
            {site: identities[site] for site in group},
            fewest,
        )
        for group in groups
    ]


def identity(config: Config, algorithm: str, digests: Mapping[str, str]) -> str:
    """Return a digest of all that decides a meta-training; where it runs and how it is judged do not.

    `digests` are the sites' own, by name: a site whose data have changed, or are to be standardised
    otherwise, makes it another training.
    """
    decisive = {
        "settings": config.decisive(algorithm),
        "sites": dict(digests),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def initial_weights(config: Config, input_shape: tuple[int, ...]) -> Weights:
    """Return the initial weights of the whole network with the run's own head."""
    return learner_for(config, input_shape, torch.device("cpu")).weights()


def common_input_shape(sites: Iterable[tuple[int, Description]]) -> tuple[int, ...]:
    """Return the shape of a case, whose numbers must mean the same at every site."""
    described = [description for _, description in sites]
    if not described:
        raise DataError("no hospital is connected; a run needs at least one.")
    for other in described[1:]:
        if other.form != described[0].form:
            words = described[0].difference(other, described[0].site, other.site)
            raise DataError(f"hospitals' cases differ: {words}. Give all the same columns, in one order.")
    return described[0].input_shape
