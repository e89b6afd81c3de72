"""Hospitals from pictures that a benchmark has made: a table of them, and what import-images makes of it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from simulation.sites import import_images


def plant(
    rows: Sequence[dict[str, str]],
    source: Path,
    folder: Path,
    *,
    labels: Sequence[str],
    masks: Sequence[str] = (),
    patient: str | None = None,
) -> None:
    """Write `source`/table.csv, with columns image and site, and the hospitals in `folder`; print them."""
    with (source / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    written = import_images(
        source / "table.csv",
        folder,
        path_column="image",
        site_column="site",
        label_columns=labels,
        mask_columns=masks,
        patient_column=patient,
        seed=0,
    )
    for hospital in written:
        print(hospital)
