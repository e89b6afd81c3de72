"""Over which rows this hospital has given sums: two over nearly the same rows give their difference away.

The coordinator chooses the split's share, the label and the classes, and with them the rows. Sums are exact,
and a mask hides them among other hospitals' but not from a second question; so a node answers for one set
of rows of a folder, as often as asked, and for no other.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from client.dataset import Hospital
from common.cases import Cases
from common.errors import DataError
from common.files import PRIVATE, write_text

FOLDER = "column-sums"


def pin(state: Path, hospital: Hospital, cases: Cases) -> None:
    """Remember these rows in `state`. DataError: sums over other rows of the same data were given before."""
    folder = hashlib.sha256(b"zamenis column sums" + hospital.secret).hexdigest()[:16]
    path = state / FOLDER / folder
    rows = hmac.new(hospital.secret, digestmod="sha256")
    for part in (cases.inputs, cases.patients):
        rows.update(part.contiguous().numpy().data)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(path, rows.hexdigest(), mode=PRIVATE)
    elif not hmac.compare_digest(path.read_text(encoding="ascii"), rows.hexdigest()):
        raise DataError(
            f"{path}: sums over other rows of these data were given before; sums over these too would give "
            "away the rows that differ. If many differ, delete the file; else leave it."
        )
