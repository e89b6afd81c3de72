"""Molecules as hospitals: fingerprints are RDKit's own, sides agree across assays, faults stop nothing."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from client.dataset import open_hospital
from common.cases import Cases
from common.errors import ConfigError, DataError
from common.sections import Data, Task
from simulation import cli, molecules
from simulation.molecules import Fingerprint

needs_rdkit = pytest.mark.skipif(
    importlib.util.find_spec("rdkit") is None, reason='needs RDKit: pip install "zamenis[molecules]"'
)
TASK = Task(label="toxic", classes=("0", "1"))
ALKANES = ["C" * length for length in range(1, 41)]
TOX21 = Path(__file__).parents[3] / "shared" / "data" / "tox21" / "tox21.csv"
TABLE = """smiles,name,liver,heart,batch
CCO,ethanol,0,1,7
c1ccccc1,benzene,1,,7
C[C,broken,1,1,8
,nothing,1,1,8
OCC,ethanol again,1,1,8
C[C@H](N)C(=O)O,L-alanine,1.0,0,8
C[C@@H](N)C(=O)O,D-alanine,0,0,8
CC(=O)C,acetone,perhaps,1,8
CCN,ethylamine,,,8
"""


def _import(
    folder: Path,
    text: str = TABLE,
    *,
    assays: Sequence[str] = (),
    id_column: str | None = "name",
    fingerprint: Fingerprint | None = None,
    seed: int = 0,
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "molecules.csv").write_text(text)
    return molecules.import_molecules(
        folder / "molecules.csv",
        folder / "assays",
        smiles_column="smiles",
        assays=assays,
        id_column=id_column,
        fingerprint=fingerprint or Fingerprint(),
        seed=seed,
    )


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _alkanes() -> str:
    """Return 40 chains, all tested in two assays with opposite answers."""
    rows = (f"{smiles},{len(smiles) % 2},{1 - len(smiles) % 2}" for smiles in ALKANES)
    return "\n".join(["smiles,even,odd", *rows]) + "\n"


@needs_rdkit
def test_an_assay_is_a_hospital_of_the_molecules_tested_in_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows that cannot be used are told by line; RDKit says nothing; stereoisomers are one patient."""
    liver, heart = _import(tmp_path, assays=("liver", "heart"))
    rows = [(row["molecule"], row["toxic"]) for row in _read(liver / "table.csv")]
    assert rows == [("ethanol", "0"), ("benzene", "1"), ("L-alanine", "1"), ("L-alanine", "0")]
    assert [row["molecule"] for row in _read(heart / "table.csv")] == ["ethanol", "L-alanine", "L-alanine"]
    assert [(row["line"], row["reason"]) for row in _read(tmp_path / "assays" / "skipped.csv")] == [
        ("4", "smiles: RDKit reads no molecule"),
        ("5", "smiles: RDKit reads no molecule"),
        ("6", "the same molecule is listed before"),
        ("9", "liver: must be 0, 1 or empty"),
        ("10", "tested in no assay"),
    ]
    assert "SMILES" not in capfd.readouterr().err


@needs_rdkit
def test_features_are_the_bits_that_rdkit_sets(tmp_path: Path) -> None:
    """Packed, written, read and unpacked, every bit stands where RDKit has it."""
    from rdkit.Chem import MolFromSmiles
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    even, _ = _import(tmp_path, _alkanes(), id_column=None, fingerprint=Fingerprint(bits=64, radius=3))
    generator = GetMorganGenerator(radius=3, fpSize=64)
    expected = {tuple(generator.GetFingerprint(MolFromSmiles(smiles))) for smiles in ALKANES}
    found = _sides(even)
    assert {tuple(map(int, case)) for side in found for case in side.inputs} == expected
    assert len(expected) > 2


@needs_rdkit
def test_a_molecule_is_on_the_same_side_of_every_assay(tmp_path: Path) -> None:
    """What one assay tests on, the other never learned from; another seed splits otherwise."""
    even, odd = (_sides(folder) for folder in _import(tmp_path / "one", _alkanes(), id_column=None))
    for one, other in zip(even, odd, strict=True):
        assert np.array_equal(one.inputs, other.inputs)
        assert np.array_equal(one.labels, 1 - other.labels)
    again, _ = _import(tmp_path / "two", _alkanes(), id_column=None, seed=1)
    assert not np.array_equal(even[0].inputs, _sides(again)[0].inputs)


def _sides(folder: Path) -> tuple[Cases, Cases]:
    hospital = open_hospital(folder, Data(), TASK)
    return hospital.adaptation, hospital.test


@needs_rdkit
def test_assays_are_the_columns_of_0_and_1_where_none_is_named(tmp_path: Path) -> None:
    """`batch` holds 7 and 8, `liver` a word, so `heart` alone is an assay."""
    assert [folder.name for folder in _import(tmp_path)] == ["heart"]


@needs_rdkit
def test_the_command_takes_assays_between_commas(tmp_path: Path) -> None:
    """In the order given; the bits asked for are the bits that the schema tells."""
    (tmp_path / "molecules.csv").write_text(TABLE)
    cli.import_molecules(
        tmp_path / "molecules.csv", tmp_path / "out", "smiles", assays="liver, heart", bits=64
    )
    assert {path.parent.name for path in tmp_path.rglob("table.csv")} == {"liver", "heart"}
    assert "fingerprint = 64" in (tmp_path / "out" / "liver" / "schema.toml").read_text()


@needs_rdkit
@pytest.mark.parametrize(
    ("text", "assays", "message"),
    [
        (TABLE, ("livre",), "no column livre. Did you mean liver"),
        ("smiles,name,liver\nCC,a,7\n", (), "no column holds 0 and 1 only"),
        ("smiles,name,liver\nC[C,a,0\n", ("liver",), "no usable row"),
        (
            "smiles,name,liver,heart\nCC,a,0,\nC[C,b,,1\n",
            ("liver", "heart"),
            "heart tests no usable molecule",
        ),
    ],
)
def test_a_table_that_makes_no_assay_is_refused(
    tmp_path: Path, text: str, assays: Sequence[str], message: str
) -> None:
    """One message that names the column and the remedy."""
    with pytest.raises(DataError, match=message):
        _import(tmp_path, text, assays=assays)


@pytest.mark.parametrize("fingerprint", [(100, 2), (0, 2), (64, -1)])
def test_a_fingerprint_that_cannot_be_packed_is_refused(fingerprint: tuple[int, int]) -> None:
    """Bits come in whole bytes."""
    with pytest.raises(ConfigError, match="multiple of 8"):
        Fingerprint(*fingerprint)


def test_without_rdkit_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports no molecules needs no RDKit."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"zamenis\[molecules\]"):
        _import(tmp_path)


@needs_rdkit
@pytest.mark.skipif(not TOX21.is_file(), reason="Tox21 of shared/data is not on this machine")
def test_tox21_becomes_twelve_assays(tmp_path: Path) -> None:
    """All but eight of 7,831 molecules are read; NR-AhR has 768 toxic ones of 6,549 before that."""
    folders = molecules.import_molecules(
        TOX21, tmp_path, smiles_column="smiles", id_column="mol_id", fingerprint=Fingerprint(), seed=0
    )
    assert len(folders) == 12
    assert len(_read(tmp_path / "skipped.csv")) == 8
    census = open_hospital(tmp_path / "NR-AhR", Data(), TASK).census
    assert 6549 - 8 <= census.accepted <= 6549
    assert 768 - 8 <= census.per_class["1"] <= 768
