"""Statistics that a coordinator sends: one set a training, none that a federation could not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.dataset import Hospital, open_hospital
from client.standard import accept
from common.columns import Statistics
from common.errors import PolicyError
from common.sections import Data, Task
from simulation.tables import import_table
from tests.conftest import write_table_hospital

FEDERATION = Data(standardise="federation")


def opened(folder: Path, task: Task | None = None) -> Hospital:
    """Return a hospital whose columns the federation standardises."""
    return open_hospital(folder, FEDERATION, task or Task(classes=("normal", "nodule")))


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """Return a hospital with four numeric columns."""
    return opened(write_table_hospital(tmp_path / "site-1", seed=1))


def own(hospital: Hospital, *, stretched: float = 1.0, moved: float = 0.0) -> Statistics:
    """Return a hospital's own statistics, the deviation divided and the mean moved by so many deviations."""
    assert hospital.measured is not None
    found = Statistics.of(hospital.measured.adaptation.inputs.numpy())
    return Statistics(found.mean + moved * found.std, found.std / stretched)


def test_one_training_has_one_set_and_another_may_have_another(hospital: Hospital, tmp_path: Path) -> None:
    """The same as often as asked; another for the same run is refused, and for the next run taken."""
    for _ in range(2):
        accept(tmp_path, hospital, own(hospital), "first")
    other = own(hospital, stretched=1.1)
    with pytest.raises(PolicyError, match="standardise"):
        accept(tmp_path, hospital, other, "first")
    accept(tmp_path, hospital, other, "second")
    accept(tmp_path, hospital, other, None)


@pytest.mark.parametrize("told", [{"stretched": 40.0}, {"moved": 40.0}, {"stretched": 1e-9, "moved": 1e12}])
def test_a_set_that_no_federation_has_ends_the_matter(
    hospital: Hospital, tmp_path: Path, told: dict[str, float]
) -> None:
    """No standardised values have such squares; then none are taken, however well they fit.

    A coordinator cannot feel its way to this hospital's own means.
    """
    with pytest.raises(PolicyError, match="standardise"):
        accept(tmp_path, hospital, own(hospital, **told), "first")
    with pytest.raises(PolicyError, match="standardise"):
        accept(tmp_path, hospital, own(hospital), "second")


def test_later_sets_are_judged_by_the_first_and_not_by_the_data(hospital: Hospital, tmp_path: Path) -> None:
    """Within four times of what was taken first; beyond, refused at that time alone."""
    accept(tmp_path, hospital, own(hospital), "first")
    for run, told in {
        "narrow": {"stretched": 4.5},
        "wide": {"stretched": 0.2},
        "far": {"moved": 4.5},
    }.items():
        with pytest.raises(PolicyError, match="standardise"):
            accept(tmp_path, hospital, own(hospital, **told), run)
    accept(tmp_path, hospital, own(hospital, stretched=3.9, moved=0.9), "near")


def test_a_column_that_nobody_measured_is_judged_when_one_has(hospital: Hospital, tmp_path: Path) -> None:
    """Deviation 0 stretches nothing; the first real one is held against the data like any first."""
    nothing = own(hospital)
    nothing.std[2] = 0.0
    accept(tmp_path, hospital, nothing, "first")
    wild = own(hospital)
    wild.std[2] /= 50
    with pytest.raises(PolicyError, match="standardise"):
        accept(tmp_path, hospital, wild, "second")


def test_hospitals_that_are_merely_different_take_each_others_statistics(
    shared_data: Path, tmp_path: Path
) -> None:
    """Four real ones: over all, and over all less each in turn, also at the one left out."""
    written = import_table(
        shared_data / "heart_4site" / "heart_4site.csv",
        tmp_path / "heart",
        site_column="site",
        label_column="disease",
        numeric=["age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"],
        categorical=["cp", "restecg"],
        missing={"chol": ["0"], "trestbps": ["0"]},
        drop=["num"],
        seed=1,
    )
    places = [opened(folder, Task(classes=("0", "1"), label="disease")) for folder in written]
    rows = [one.measured.adaptation.inputs.numpy() for one in places if one.measured]
    sets = [Statistics.of(np.concatenate(rows))]
    sets += [Statistics.of(np.concatenate([other for other in rows if other is not left])) for left in rows]
    for place in places:
        for number, told in enumerate(sets):
            accept(tmp_path / place.name, place, told, str(number))
