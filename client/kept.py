"""What of a training never leaves the hospital: its own normalisation, and what its optimiser remembers.

The last two rounds are kept, each in a file in the hospital's state folder. A run that is resumed repeats at
most one round, and finds there what the round before left. What no run has touched for a month is forgotten.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from common.errors import DataError
from common.files import PRIVATE, atomic
from common.weights import Weights

MONTH = 30 * 24 * 3600.0
BEFORE = "round before"
"""In a file's metadata: the round whose file its round went on from; 0: none."""


class Kept:
    """What one meta-training left at one hospital; `run` is a coordinator's name for it."""

    def __init__(self, state: Path, run: str) -> None:
        self._folder = state / "kept" / hashlib.sha256(run.encode()).hexdigest()[:32]

    def before(self, server_round: int) -> Weights:
        """Return what the last round before `server_round` left; nothing where there was none.

        Raises DataError where it is damaged, or was there once and is no longer kept.
        """
        earlier, later = self._around(server_round)
        try:
            if earlier:
                return load_file(self._path(earlier[-1]))
            if later and 0 < self._round_before(later[0]) < server_round:
                raise DataError(
                    f"what this hospital kept before round {server_round} is gone: the run has been set back "
                    "by more than a round. Begin the meta-training anew."
                )
        except (SafetensorError, OSError) as error:
            raise DataError(
                "what this hospital keeps of a meta-training is damaged; delete the folder kept of its "
                "state, and begin the meta-training anew."
            ) from error
        return {}

    def keep(self, weights: Weights, server_round: int) -> None:
        """Write `weights` down as what `server_round` left, and forget all but the round before it.

        Where a number among them is not finite, what this round began with is left again: the next one goes
        on from the last good one. Were nothing written, a later refusal would tell who blew up.
        """
        if not all(value.isfinite().all() for value in weights.values()):
            weights = self.before(server_round)
        earlier, _ = self._around(server_round)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forget_old_runs()
        with atomic(self._path(server_round), mode=PRIVATE) as temporary:
            save_file(weights, temporary, metadata={BEFORE: str(earlier[-1] if earlier else 0)})
        for forgotten in earlier[:-1]:
            self._path(forgotten).unlink(missing_ok=True)

    def _forget_old_runs(self) -> None:
        """Delete what runs kept that no round has touched for a month."""
        for folder in self._folder.parent.iterdir():
            if folder != self._folder and folder.stat().st_mtime < time.time() - MONTH:
                shutil.rmtree(folder, ignore_errors=True)

    def _around(self, server_round: int) -> tuple[list[int], list[int]]:
        """Return the rounds kept before `server_round`, and the others."""
        kept = sorted(int(path.stem[6:]) for path in self._folder.glob("round-*.safetensors"))
        return [one for one in kept if one < server_round], [one for one in kept if one >= server_round]

    def _round_before(self, server_round: int) -> int:
        with safe_open(self._path(server_round), framework="pt") as file:
            return int((file.metadata() or {}).get(BEFORE, 0))

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06}.safetensors"
