"""What a hospital's worker says where it cannot answer: its name first, and no path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.site import opener
from common import wire
from tests.client.registered import asked, write_rows


def refusal(site: str, folders: list[Path], policy: Path | None = None, *over: str) -> Message:
    """Return how a node of these folders answers `describe`."""
    config: dict[str, Any] = {"site": site, "hospital": "\n".join(map(str, folders)), "device": "cpu"}
    if policy:
        config["policy"] = str(policy)
    opener.cache_clear()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})
    reply = app(wire.instruct(1, wire.DESCRIBE, wire.Instruction(asked(*over).to_json())), context)
    assert reply.has_error()
    return reply


def rows(folder: Path, count: int, sides: str = "") -> Path:
    """Write a table hospital of so many patients."""
    return write_rows(folder, [(f"p{row}", row, 1, 2, 3, sides or "normal") for row in range(count)])


@pytest.mark.parametrize("site", ["8", "1", "st-anna"])
def test_words_begin_with_the_hospitals_name_whatever_it_is_called(tmp_path: Path, site: str) -> None:
    """Also where the name is a number that stands in the words, or in the path, already."""
    folder = rows(tmp_path / "1" / "18", 8, "neither")
    told = wire.words_of(refusal(site, [folder]))
    assert told.startswith(f"{site}: no row's finding is one of normal, nodule.")
    assert told.count(f"{site}: ") == 1
    assert str(tmp_path) not in told


def test_words_about_one_folder_of_several_begin_with_its_name(tmp_path: Path) -> None:
    """The path of one folder may begin with another's."""
    folders = [rows(tmp_path / "1", 8), rows(tmp_path / "18", 8, "neither")]
    told = wire.words_of(refusal("pool/without 8", folders))
    assert told.startswith("18: no row's finding is")
    assert str(tmp_path) not in told


def test_that_a_hospital_is_small_is_told_where_it_explains_itself_alone(tmp_path: Path) -> None:
    """A code of its own would tell of counts that a hospital keeps to itself."""
    folder = rows(tmp_path / "a", 1)
    reply = refusal("8", [folder])
    assert reply.error.code == wire.TOO_SMALL
    assert wire.words_of(reply).startswith("8: All 1 patients are on the")  # "a" stands in the words, too
    policy = tmp_path / "policy.toml"
    policy.write_text('messages = ["describe"]\nsecure-aggregation = "optional"\n')
    reply = refusal("8", [folder], policy)
    assert (reply.error.code, wire.words_of(reply)) == (wire.REFUSED, f"8: {wire.WORDS[wire.REFUSED]}")


def test_a_network_for_images_is_told_to_who_chose_it_for_tables(tmp_path: Path) -> None:
    """The coordinator alone can choose another, whether or not this hospital explains itself."""
    folder, policy = rows(tmp_path / "a", 80), tmp_path / "policy.toml"
    policy.write_text('messages = ["describe"]\nsecure-aggregation = "optional"\n')
    reply = refusal("8", [folder], policy, "model.name=conv4")
    assert (reply.error.code, wire.words_of(reply)) == (wire.UNFIT, f"8: {wire.WORDS[wire.UNFIT]}")
    told = wire.words_of(refusal("8", [folder], None, "model.name=conv4"))
    assert told == "8: model.name conv4 cannot read tables; use mlp or linear."
