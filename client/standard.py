"""Whether the statistics that a coordinator sends may stand for this hospital's numeric columns.

Values standardised by them are what a network sees. Whoever chooses them freely can stretch one column
until a single patient shows, so:

- one meta-training has one set of statistics, in every round;
- a column's first mean and deviation must fit this hospital's own rows, all of them: rows of classes that
  a coordinator chose, and that are not here, fit anything. If they are those of N values, n of
  them here, the squares of these n, standardised, sum to at most N - 1: on average to less than N / n;
- later ones are compared with the first, and not with the data: otherwise each answer would tell a
  coordinator something about the hospital's own means. For the same reason a first set that does not fit
  ends the matter until somebody at the hospital has looked.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.dataset import Hospital
from common.columns import Statistics
from common.errors import PolicyError
from common.files import PRIVATE, write_text

logger = logging.getLogger("zamenis.client")
FOLDER, FIRST = "statistics", "first"
SHARE = 1000.0
"""N / n at the most: a hospital may have measured as little as a thousandth of a federation's values."""
DRIFT = 4.0
"""Times that a later deviation may exceed the first or fall below it, and first deviations that a later mean
may lie off: hospitals that come and go move both by less."""
MONTH = 30 * 24 * 3600.0
MOST_RUNS = 1000
"""Meta-trainings whose statistics are remembered; the oldest give way."""


def accept(state: Path, hospital: Hospital, statistics: Statistics, run: str | None) -> None:
    """Take what the columns are to be standardised with in the training `run`, and remember it in `state`.

    `run` is None where no training asks. Raises PolicyError where the statistics are not the run's, or cannot
    be those of a federation that this hospital is in.
    """
    assert hospital.columns_learned is not None  # noqa: S101 - only such hospitals are sent statistics
    name = hashlib.sha256(b"zamenis statistics" + hospital.secret).hexdigest()[:16]
    folder = state / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if run is not None:
        _one_set(folder, statistics, run)
    first = folder / FIRST
    taken = _taken(first, len(statistics.mean))
    if taken is not None:
        new = (taken.std == 0) & (statistics.std > 0)
        if new.any():
            values = hospital.columns_learned.numpy()
            taken = _joined(taken, statistics, new) if _fit(statistics, values, new) else None
            write_text(first, taken.to_json() if taken else "", mode=PRIVATE)
    if taken is None or not _near(statistics, taken):
        logger.warning(
            "the coordinator's statistics of numeric columns do not fit this hospital's, or those that it "
            "took first. Ask the coordinator why; where all is well, delete %s",
            first,
        )
        raise PolicyError("standardise")


def _taken(first: Path, columns: int) -> Statistics | None:
    """Return the first set, with deviation 0 where none had one yet; None where one did not fit."""
    if not first.is_file():
        return Statistics(*np.zeros((2, columns)))
    text = first.read_text(encoding="ascii")
    taken = Statistics.from_json(text) if text else None
    return taken if taken and len(taken.mean) == columns else None


def _one_set(folder: Path, statistics: Statistics, run: str) -> None:
    """Raise PolicyError where a run comes with other statistics than before; forget runs of a month ago."""
    path = folder / f"run-{hashlib.sha256(run.encode()).hexdigest()[:32]}"
    digest = hashlib.sha256(statistics.to_json().encode()).hexdigest()
    if not path.is_file():
        write_text(path, digest, mode=PRIVATE)
    elif path.read_text(encoding="ascii") != digest:
        logger.warning("this meta-training came with other statistics of numeric columns before")
        raise PolicyError("standardise")
    path.touch()
    runs = sorted(folder.glob("run-*"), key=lambda one: one.stat().st_mtime)
    for place, old in enumerate(runs):
        if len(runs) - place > MOST_RUNS or old.stat().st_mtime < time.time() - MONTH:
            old.unlink(missing_ok=True)


def _fit(told: Statistics, values: NDArray[np.float64], columns: NDArray[np.bool_]) -> bool:
    """Return whether its values of some columns could be among those that the statistics are of."""
    measured = (~np.isnan(values)).sum(0)
    squares = np.square(told.standardise(values)).sum(0)
    return bool((squares <= SHARE * np.maximum(measured, 1))[columns].all())


def _joined(taken: Statistics, told: Statistics, new: NDArray[np.bool_]) -> Statistics:
    return Statistics(np.where(new, told.mean, taken.mean), np.where(new, told.std, taken.std))


def _near(told: Statistics, taken: Statistics) -> bool:
    """Return whether one set could follow another as hospitals come and go; without variance any mean may."""
    vary = told.std > 0
    ratio = told.std[vary] / taken.std[vary]
    off = np.abs(told.mean - taken.mean)[vary] / taken.std[vary]
    return bool(((ratio <= DRIFT) & (ratio >= 1 / DRIFT) & (off <= DRIFT)).all())
