"""One file per algorithm, differing only in what differs; this is the list of them by name."""

from __future__ import annotations

from collections.abc import Mapping

from common.algorithms.algorithm import Algorithm, Update
from common.algorithms.anil import anil
from common.algorithms.fedavg import fedavg
from common.algorithms.fedbn import fedbn
from common.algorithms.fedprox import fedprox
from common.algorithms.fomaml import fomaml
from common.algorithms.local_only import local_only
from common.algorithms.maml import maml
from common.algorithms.matching import matching, matching_fce
from common.algorithms.pooled import pooled
from common.algorithms.protonet import protonet
from common.algorithms.reptile import reptile
from common.algorithms.siamese import siamese

ALGORITHMS: Mapping[str, Algorithm] = {
    one.name: one
    for one in (
        reptile,
        fomaml,
        maml,
        anil,
        protonet,
        matching,
        matching_fce,
        siamese,
        fedavg,
        fedprox,
        fedbn,
        local_only,
        pooled,
    )
}

__all__ = ["ALGORITHMS", "Algorithm", "Update"]
