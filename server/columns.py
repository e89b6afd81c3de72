"""Before a meta-training: what its sites standardise numeric columns with, from sums over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.serverapp import Grid

from common import columns, wire
from common.bounds import exact
from common.config import Config
from common.errors import DataError, TooFewError, WireError
from common.sections import Training
from server.exchange import exchange
from server.gather import Gathered, Plain
from server.secure import SecureSum

WHEN = "columns are summed"


def statistics(
    grid: Grid,
    config: Config,
    algorithm: str,
    nodes: Mapping[str, int],
    count: int,
    identities: Mapping[str, bytes] | None,
) -> str:
    """Return the `common.columns.Statistics` of `count` columns over the sites `nodes`, as JSON.

    With `identities` the sums alone are seen, in a run of secure aggregation of their own. They are asked for
    once. DataError: too few sites answered, or no values have such sums.
    """
    training = exact(config.training_of(algorithm))
    length, seconds = count * columns.NUMBERS, training.round_timeout
    instruction = wire.Instruction(config=config.to_json(), algorithm=algorithm, column_sums=True)
    nothing = wire.vector(torch.zeros(length))
    messages = {
        site: wire.instruct(nodes[site], wire.TRAIN, instruction, nothing, seconds=seconds)
        for site in sorted(nodes)
    }
    if identities:
        known = {site: identities[site] for site in nodes}
        least = training.min_cohort or len(nodes)
        secure = SecureSum(training, columns.BITS, length, nodes, known, least)
        found = secure.gather(grid, messages, [])
        secure.finish(grid)
    else:
        plain = Plain(training, length, {node: site for site, node in nodes.items()})
        replies = exchange(grid, list(messages.values()), timeout=seconds)
        (found,) = plain.gather(list(messages), (reply for _, reply in replies))
    return _statistics(found, training).to_json()


def _statistics(found: Gathered, training: Training) -> columns.Statistics:
    mean = found.enough(training, WHEN)
    if mean is None:
        raise TooFewError(
            f"{WHEN}: {found.sites} hospitals answered, and training.min-cohort asks for "
            f"{training.min_cohort}.\n{found.why()}\nResume the run when more of them are there."
        )
    try:
        return columns.statistics(mean * found.sites)
    except WireError as error:
        raise DataError(str(error)) from error
