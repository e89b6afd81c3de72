"""A configuration is complete, frozen, and every mistake in it is one clear message."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Config, from_json, load
from common.errors import ConfigError
from common.settings import validate


def test_toml_round_trip() -> None:
    """What a run writes as its config.toml reads back equal, and so does what travels in messages."""
    config = load(None, ["training.rounds=7", 'experiment.held-out=["a"]', "algorithms.fedprox.proximal=0.5"])
    assert validate(Config, tomllib.loads(config.to_toml()), "again") == config
    assert from_json(config.to_json()) == config


def test_an_algorithm_is_itself_over_training_and_under_its_own_table() -> None:
    """[training] is the ground, the algorithm's identity lies on it, [algorithms.NAME] on top."""
    config = load(None, ["training.rounds=7", "training.weighting=uniform", "algorithms.fedavg.rounds=9"])
    assert config.training_of("reptile").rounds == 7
    assert config.training_of("reptile").outer.meta_lr_final == 0.0
    assert config.training_of("fedavg").rounds == 9
    assert config.training_of("fedavg").weighting == "patients"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.round=3", ["training.round ", "did you mean rounds"]),
        ("sead=3", ["sead ", "did you mean seed"]),
        ("training.rounds=0", ["training.rounds", "greater than or equal to 1", "it is 0"]),
        ('seed="one"', ["seed", "integer"]),
        ("data.image-size=3.5", ["data.image-size", "integer"]),
        ("training.inner-lr=nan", ["training.inner-lr", "finite"]),
        ("training.inner-lr=inf", ["training.inner-lr", "finite"]),
        ("model.name=resnet", ["model.name", "conv4"]),
        ("training.way=3", ["training", "way needs a shot"]),
        ("experiment.way=3", ["experiment.way 3", "the 2 of task.classes"]),
        ("algorithms.reptil.rounds=3", ["reptil ", "known: reptile"]),
        ("algorithms.reptile.roundz=3", ["[algorithms.reptile]", "did you mean rounds"]),
        ('experiment.algorithms=["maml2"]', ["maml2", "known: reptile"]),
        ('task.classes=["a", "a"]', ["task", "twice"]),
        ('task.classes=["a"]', ["task", "needs classes"]),
        ("experiment.shots=[1, 1]", ["shots", "twice"]),
        ("experiment.metric=mae", ["experiment.metric mae", "auroc, accuracy"]),
        ('task.kind="segmentation"', ["unet", "segmentation"]),
        ("model.name=unet", ["unet", "classification"]),
        ("task.spread=0", ["task.spread", "greater than 0"]),
        ("seed", ["--set seed", "key=value"]),
    ],
)
def test_a_mistake_is_named_with_its_key_and_its_rule(override: str, words: list[str]) -> None:
    """Unknown keys, wrong types and impossible values each say which key and which rule."""
    with pytest.raises(ConfigError) as caught:
        load(None, [override])
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_toml_or_not_there_is_named(tmp_path: Path) -> None:
    """The message names the file."""
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 3")
    for path in (broken, tmp_path / "absent.toml"):
        with pytest.raises(ConfigError, match=path.name):
            load(path)


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=4) | st.floats(), max_size=3))
def test_no_tree_escapes_as_anything_but_a_config_error(tree: dict[str, object]) -> None:
    """Whatever a file holds, it is a Config or a ConfigError."""
    with contextlib.suppress(ConfigError):
        validate(Config, tree, "anything")


@pytest.mark.parametrize("example", sorted((Path(__file__).parents[2] / "patients").glob("*.toml")))
def test_every_example_is_valid(example: Path) -> None:
    """The ready configurations load."""
    load(example)
