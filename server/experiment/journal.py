"""Answers that a run has already paid for, kept on disk so that an interrupted run never asks twice."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import atomic
from common.wire import Judgement
from server.evaluation import Question


class Journal:
    """One file per question under a folder, named by a digest of everything that decides the answer."""

    def __init__(self, folder: Path, *, settings: str) -> None:
        self._folder = folder
        self._settings = settings

    def recall(self, question: Question) -> Judgement | None:
        """Return the answer kept for `question`, or nothing where there is none or it is damaged."""
        try:
            with np.load(self._path(question), allow_pickle=False) as kept:
                arrays = dict(kept)
                facts = json.loads(str(arrays.pop("facts")))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        return Judgement(_below(arrays, "draws/"), _below(arrays, "replicates/"), **facts)

    def keep(self, question: Question, answer: Judgement) -> None:
        """Write the answer down."""
        arrays = {f"draws/{name}": values for name, values in answer.draws.items()}
        arrays |= {f"replicates/{name}": values for name, values in answer.replicates.items()}
        facts = {"hurt": answer.hurt, "fell_back": answer.fell_back, "left_out": answer.left_out}
        with atomic(self._path(question)) as temporary, temporary.open("wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]

    def _path(self, question: Question) -> Path:
        asked = asdict(question) | {"phi": hashlib.sha256(question.phi.numpy().tobytes()).hexdigest()}
        text = json.dumps([self._settings, asked], sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _below(arrays: Mapping[str, NDArray[np.float64]], prefix: str) -> dict[str, NDArray[np.float64]]:
    return {name[len(prefix) :]: values for name, values in arrays.items() if name.startswith(prefix)}
