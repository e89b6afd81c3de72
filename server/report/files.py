"""What a finished run leaves in its folder, whoever ran it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_text
from server.report.events import write_events
from server.report.page import Picture, write_report

RESULTS = "results.json"


def write_results(results: Mapping[str, Any], folder: Path, pictures: Sequence[Picture] = ()) -> None:
    """Write results.json, report.html and tensorboard/ in `folder`; `pictures` are in the report alone."""
    write_text(folder / RESULTS, json.dumps(results, indent=1, allow_nan=False))
    write_report(results, folder / "report.html", pictures)
    write_events(results, folder / "tensorboard")
