"""One file per algorithm, differing only in what differs; this is the list of them by name."""

from __future__ import annotations

from collections.abc import Mapping

from common.algorithms.algorithm import Algorithm, Update
from common.algorithms.anil import anil
from common.algorithms.fedavg import fedavg
from common.algorithms.fedprox import fedprox
from common.algorithms.fomaml import fomaml
from common.algorithms.local_only import local_only
from common.algorithms.maml import maml
from common.algorithms.pooled import pooled
from common.algorithms.reptile import reptile

ALGORITHMS: Mapping[str, Algorithm] = {
    "reptile": reptile,
    "fomaml": fomaml,
    "maml": maml,
    "anil": anil,
    "fedavg": fedavg,
    "fedprox": fedprox,
    "local-only": local_only,
    "pooled": pooled,
}

__all__ = ["ALGORITHMS", "Algorithm", "Update"]
