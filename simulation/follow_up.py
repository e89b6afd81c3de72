"""Patients' outcomes as labels: whether the event came within the horizon.

A patient whose follow-up ended before the horizon without the event (censored) has no answer and is left out.
That favours patients with the event, who need not be followed as long: the share of 1 is no estimate of risk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import ConfigError
from simulation.source import Row, Source, number

_EVENT = {0.0: False, 1.0: True}


@dataclass(frozen=True)
class FollowUp:
    """The columns of a patient's follow-up, and how long after its start the question is asked."""

    event: str
    """1 where it ended with the event, 0 where without."""
    time: str
    """How long it was, in the horizon's unit."""
    horizon: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.horizon) and self.horizon > 0):
            raise ConfigError(f"--horizon {self.horizon}: must be above 0, in the time column's unit.")

    def label(self, source: Source, name: str) -> None:
        """Add column `name` to `source`: 1 for the event by the horizon, 0 for none until then.

        Rows that tell neither are left out. Raises DataError for a column that is not there, ConfigError
        for a `name` that is there already.
        """
        source.require(self.event, self.time)
        if name in source.columns:
            raise ConfigError(
                f"--label-column {name}: is a column of {source.path} already, and is to be made of "
                f"{self.event} and {self.time}. Give it a new name."
            )
        source.sift(self._fault)
        source.add(name, lambda row: "1" if self._answer(row) else "0")

    def _fault(self, row: Row) -> str | None:
        """Return why a row has no answer, or None."""
        if number(row.cells[self.event]) not in _EVENT:
            return f"{self.event}: must be 0 or 1"
        time = number(row.cells[self.time])
        if time is None or time < 0:
            return f"{self.time}: must be a number, 0 or more"
        return "followed for less than the horizon, without the event" if self._answer(row) is None else None

    def _answer(self, row: Row) -> bool | None:
        """Return whether the event came by the horizon; None where follow-up ended before either."""
        happened, time = _EVENT[float(row.cells[self.event])], float(row.cells[self.time])
        if time <= self.horizon and happened:
            return True
        return False if time >= self.horizon else None
