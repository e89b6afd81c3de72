"""What of a network never leaves the hospital: its own normalisation, kept from round to round on its disk.

One small file per round in the hospital's state folder, so that a run that is resumed at any round finds
what it left; after the last round only that one stays.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import DataError
from common.files import atomic
from common.weights import Weights


class Kept:
    """What one meta-training left at one hospital; `run` is a coordinator's name for it."""

    def __init__(self, state: Path, run: str) -> None:
        self._folder = state / "kept" / hashlib.sha256(run.encode()).hexdigest()[:32]

    def before(self, server_round: int) -> Weights:
        """Return what the last round before `server_round` left; nothing where there was none.

        Raises DataError where it is damaged.
        """
        earlier = [number for number in self._rounds() if number < server_round]
        if not earlier:
            return {}
        path = self._path(max(earlier))
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{path.name}: the hospital's own normalisation is damaged; delete it and start the run anew."
            ) from error

    def keep(self, weights: Weights, server_round: int, *, last: bool) -> None:
        """Write `weights` down as what `server_round` left; after the `last` round nothing else is needed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic(self._path(server_round)) as temporary:
            save_file(weights, temporary)
        for earlier in self._rounds() if last else ():
            if earlier != server_round:
                self._path(earlier).unlink(missing_ok=True)

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06}.safetensors"

    def _rounds(self) -> list[int]:
        return [int(path.stem[6:]) for path in self._folder.glob("round-*.safetensors")]
