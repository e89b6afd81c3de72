"""What version 0.1.0 pinned: over which rows a hospital gave sums over columns, before rows were registered.

Such a sum and one over the rows that are registered now would give away the rows that differ, so a pin of
other rows refuses sums over columns until the operator deletes it. Nothing writes pins any more.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from common.cases import Cases
from common.errors import DataError

FOLDER = "column-sums"


def check_pins(states: Iterable[Path], secrets: Iterable[bytes], own: bytes, cases: Cases) -> None:
    """Raise DataError where a pin in `states`, of a folder's secret or of all together, is of other rows.

    `own` is the secret of the folders together, `cases` are those whose numeric columns are to be summed.
    """
    rows = hmac.new(own, digestmod="sha256")
    for part in (cases.inputs, cases.patients):
        rows.update(part.contiguous().numpy().data)
    names = {hashlib.sha256(b"zamenis column sums" + one).hexdigest()[:16] for one in (*secrets, own)}
    for path in (state / FOLDER / name for state in states for name in sorted(names)):
        if path.is_file() and not hmac.compare_digest(path.read_text(encoding="ascii"), rows.hexdigest()):
            raise DataError(
                f"{path}: version 0.1.0 gave sums over other rows of these data; with these they would give "
                "away the rows that differ. If many differ, delete the file; else leave it."
            )
