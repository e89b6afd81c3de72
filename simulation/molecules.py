"""Assays as hospitals: a CSV of molecules with 0/1 columns becomes one table of fingerprints per assay.

Few-shot toxicity: the next assay is the next hospital, with a handful of molecules tested. Assays test
the same molecules, so they share one key and with it one split: what is tested on at one of them is
learned from at none. (Altae-Tran et al. 2017, arXiv 1611.03199, have Tox21's assays as few-shot tasks.)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tomli_w

from client.cells import NOT_MEASURED
from common.errors import ConfigError, DataError
from simulation.hospital import check_sites, new_hospital, write_csv
from simulation.source import Row, Source, read_source

if TYPE_CHECKING:
    from rdkit.Chem.rdFingerprintGenerator import FingerprintGenerator64

LABEL = "toxic"
"""The label column that every assay gets: 1 for active."""
_LABELS = {"0": "0", "1": "1", "0.0": "0", "1.0": "1"}


@dataclass(frozen=True)
class Fingerprint:
    """A Morgan (extended-connectivity) fingerprint, blind to stereochemistry."""

    bits: int = 1024
    """How many, a multiple of 8."""
    radius: int = 2
    """Bonds from an atom that a substructure reaches: 2 is ECFP4."""

    def __post_init__(self) -> None:
        if self.bits < 8 or self.bits % 8 or self.radius < 0:
            raise ConfigError(
                f"--bits {self.bits} --radius {self.radius}: bits must be a multiple of 8, and the radius "
                "not negative; e.g. --bits 1024 --radius 2."
            )


def import_molecules(
    table: Path,
    folder: Path,
    *,
    smiles_column: str,
    assays: Sequence[str] = (),
    id_column: str | None = None,
    fingerprint: Fingerprint,
    seed: int,
) -> list[Path]:
    """Write `table.csv` and `schema.toml` per assay from a CSV of SMILES; return the assays' folders.

    Without `assays`, every other column that holds 0, 1 and nothing else is one; empty cells mean "not
    tested". Raises ConfigError without RDKit, DataError for a CSV, column or assay name that cannot be
    used, and where no row can.
    """
    if importlib.util.find_spec("rdkit") is None:
        raise ConfigError('molecules need the extra: pip install "zamenis[molecules]".')
    source = read_source(table)
    source.require(smiles_column, id_column, *assays)
    assays = assays or _assays(source, but=(smiles_column, id_column))
    check_sites(folder, assays, source=table)
    source.sift(lambda row: _fault_of_labels(row, assays))
    library = _Library(smiles_column, id_column, fingerprint)
    source.sift(library.add)
    source.report(folder)
    schema = tomli_w.dumps({"label": LABEL, "patient": "molecule", "bits": {"fingerprint": fingerprint.bits}})
    written = []
    for assay in assays:
        rows = [
            (library.names[row.line], label, library.fingerprints[row.line])
            for row in source.rows
            if (label := _LABELS.get(row.cells[assay]))
        ]
        if not rows:
            raise DataError(f"{table}: column {assay} tests no usable molecule. Leave it out.")
        with new_hospital(folder, assay, seed=seed, key_of="molecules") as hospital:
            write_csv(hospital / "table.csv", ("molecule", LABEL, "fingerprint"), rows)
            (hospital / "schema.toml").write_text(schema, encoding="utf-8")
        written.append(folder / assay)
    return written


@dataclass
class _Library:
    """The molecules read so far, by their line in the table."""

    smiles_column: str
    id_column: str | None
    fingerprint: Fingerprint
    names: dict[int, str] = field(default_factory=dict)
    """Stereoisomers, which look the same to the fingerprint, share the name of the first: one patient."""
    fingerprints: dict[int, str] = field(default_factory=dict)
    """In hexadecimal, the first bit the first digit's highest."""
    _first: dict[str, str] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def add(self, row: Row) -> str | None:
        """Take a row's molecule, or return why it cannot be taken."""
        from rdkit import rdBase
        from rdkit.Chem import MolFromSmiles, MolToSmiles

        if self.id_column and not row.cells[self.id_column]:
            return f"{self.id_column}: no molecule"
        with rdBase.BlockLogs():
            molecule = MolFromSmiles(row.cells[self.smiles_column])
        if molecule is None or not molecule.GetNumAtoms():
            return f"{self.smiles_column}: RDKit reads no molecule"
        canonical = MolToSmiles(molecule)
        if canonical in self._seen:
            return "the same molecule is listed before"
        self._seen.add(canonical)
        flat = MolToSmiles(molecule, isomericSmiles=False)
        name = row.cells[self.id_column] if self.id_column else flat
        self.names[row.line] = self._first.setdefault(flat, name)
        bits = self._generator.GetFingerprintAsNumPy(molecule)
        self.fingerprints[row.line] = np.packbits(bits).tobytes().hex()
        return None

    @cached_property
    def _generator(self) -> FingerprintGenerator64:
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

        return GetMorganGenerator(radius=self.fingerprint.radius, fpSize=self.fingerprint.bits)


def _assays(source: Source, *, but: Sequence[str | None]) -> list[str]:
    """Return the columns whose measured cells are 0 or 1, both of them; raises DataError for none."""
    found = []
    for name in source.columns:
        cells = {row.cells[name] for row in source.rows if row.cells[name].lower() not in NOT_MEASURED}
        if name not in but and {_LABELS.get(cell) for cell in cells} == {"0", "1"}:
            found.append(name)
    if not found:
        raise DataError(f"{source.path}: no column holds 0 and 1 only. Name the assays with --assays.")
    return found


def _fault_of_labels(row: Row, assays: Sequence[str]) -> str | None:
    """Return the first assay's cell that is neither 0, 1 nor empty, or that none is filled, or None."""
    tested = [name for name in assays if row.cells[name].lower() not in NOT_MEASURED]
    fault = next((name for name in tested if row.cells[name] not in _LABELS), None)
    if fault is not None:
        return f"{fault}: must be 0, 1 or empty"
    return None if tested else "tested in no assay"
