"""A folder that 0.1.0 registered answers again once it is registered again; no patient changes sides."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from client.cli import app
from client.registration import register
from client.split import keyed_hash, open_keys
from common import wire
from tests.client.registered import ask, asked
from tests.upgrade.conftest import Older

OLD = ("task.classes=['normal','nodule']", "data.standardise=federation", "model.name=mlp", "model.width=4")


def test_until_it_is_registered_again_it_answers_nothing(older: Older) -> None:
    """`data` says so by name."""
    home = older.home("st-anna")
    for kind in ("query.describe", "train"):
        assert ask(home, kind, asked(*OLD)).error.code == wire.REFUSED
    shown = CliRunner().invoke(app, ["data", "--dir", str(home.directory)], env={"COLUMNS": "200"}).output
    assert "register again" in shown


def test_every_patient_stays_on_the_side_of_before(older: Older) -> None:
    """Of all three hospitals, each with its own secret."""
    for site in older.homes:
        home, expected = older.home(site), older.expected["sides"][site]
        entry = home.settings.data[0]
        use = register(home, Path(entry.folder), label="finding").use
        assert not use.waiting + use.silent
        key = open_keys(Path(entry.state)).patient
        groups = home.book.load().groups.values()
        sides: dict[str, set[str]] = {"adaptation": set(), "test": set()}
        for one in groups:
            sides["adaptation" if one.learned else "test"] |= one.patients
        named = {side: {keyed_hash(key, patient) for patient in people} for side, people in expected.items()}
        assert sides == named


def test_a_pin_of_before_holds_for_the_same_rows_alone(older: Older) -> None:
    """Sums over columns are given over those; over all patients once the operator deleted the pin."""
    home = older.home("st-vera")
    entry = home.settings.data[0]
    register(home, Path(entry.folder), label="finding")
    (pin,) = (Path(entry.state) / "column-sums").iterdir()
    assert not ask(home, "train", asked(*OLD), column_sums=True).has_error()
    everyone = asked(*OLD, "training.patients=all")
    assert ask(home, "train", everyone, column_sums=True).error.code == wire.REFUSED
    pin.unlink()
    assert not ask(home, "train", everyone, column_sums=True).has_error()
