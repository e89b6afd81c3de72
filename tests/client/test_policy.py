"""What a hospital allows, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.policy import EVERYTHING, Kind, Policy, check, guarded, policy_of, starting
from common.algorithms import ALGORITHMS
from common.config import Config, load
from common.errors import ConfigError, PolicyError
from common.inner_loop import InnerLoop
from common.wire import Instruction, encode_recipe


def ask(policy: Policy, kind: Kind, config: Config, *, parameters: int = 10, **fields: object) -> None:
    """Check a message of `kind`."""
    instruction = Instruction(config.to_json(), **{"algorithm": "reptile", **fields})  # type: ignore[arg-type]
    check(policy, kind, instruction, config, parameters)


def test_a_new_hospital_allows_every_federated_algorithm_and_only_masked_updates() -> None:
    """Its file says so itself, and is a valid policy."""
    policy = starting()
    assert set(policy.algorithms) == {name for name, one in ALGORITHMS.items() if not one.pooled}
    assert policy.secure_aggregation == "required"
    assert policy.min_cohort == 3
    assert not policy.explain
    ask(policy, "train", load(None, ["experiment.shots=[]"]))
    with pytest.raises(PolicyError, match="messages"):
        ask(policy, "evaluate", load())


@pytest.mark.parametrize(
    ("key", "override", "fields"),
    [
        ("max-rounds", "training.rounds=1001", {}),
        ("max-rounds", "training.rounds=5", {"server_round": 1001}),
        ("max-steps", "training.inner-steps=200001", {}),
        ("max-image-size", "data.image-size=513", {}),
        ("max-parameters", "seed=1", {"parameters": 50_000_001}),
        ("algorithms", "seed=1", {"algorithm": "pooled"}),
    ],
)
def test_what_is_too_much_is_refused_by_its_key(key: str, override: str, fields: dict[str, int]) -> None:
    """The refusal names the key of policy.toml and nothing else of the hospital."""
    with pytest.raises(PolicyError, match=key) as refused:
        ask(starting(), "train", load(None, [override]), **fields)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("secure", "where", "refused"),
    [("required", "nowhere", True), ("optional", "everywhere", True), ("optional", "nowhere", False)],
)
def test_a_run_that_holds_hospitals_out_is_refused_where_updates_leave_in_sums(
    secure: str, where: str, *, refused: bool
) -> None:
    """With single updates in the open a difference of sums tells nothing more."""
    policy = starting().model_copy(update={"secure_aggregation": secure})
    config = load(None, [f'secure-aggregation.where="{where}"', "experiment.shots=[0]"])
    if not refused:
        ask(policy, "train", config)
        return
    with pytest.raises(PolicyError, match="hold-out"):
        ask(policy, "train", config)
    ask(policy.model_copy(update={"hold_out": True}), "train", config)


def test_draws_times_steps_of_an_evaluation_count() -> None:
    """A recipe's steps come with the message, not with the configuration."""
    trusting = starting().model_copy(update={"messages": ("describe", "train", "evaluate")})
    recipe = encode_recipe(InnerLoop(steps=20_001, lr=0.1))
    with pytest.raises(PolicyError, match="max-steps"):
        ask(trusting, "evaluate", load(), draws=10, recipe=recipe)
    with pytest.raises(PolicyError, match="max-replicates"):
        ask(trusting, "evaluate", load(), replicates=10_001)


def test_kinds_of_messages_can_be_closed() -> None:
    """A hospital may be counted and never train."""
    policy = starting().model_copy(update={"messages": ("describe",)})
    with pytest.raises(PolicyError, match="messages"):
        ask(policy, "train", load())


def test_the_file_is_read_anew_and_must_be_there(tmp_path: Path) -> None:
    """An edit counts for the next message; nothing is allowed without the file, or with a broken one."""
    path = tmp_path / "policy.toml"
    path.write_text(guarded())
    assert policy_of(path).max_rounds == 1000
    path.write_text(guarded().replace("max-rounds = 1000", "max-rounds = 7"))
    assert policy_of(path).max_rounds == 7
    path.write_text("max-rounds = ")
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        policy_of(path)
    path.unlink()
    with pytest.raises(ConfigError, match="nothing is allowed without it"):
        policy_of(path)
    assert policy_of(None) == EVERYTHING


def test_an_older_file_allows_no_sums_over_columns(tmp_path: Path) -> None:
    """Its hospital was never asked; one that says so allows them."""
    path = tmp_path / "policy.toml"
    old = "\n".join(line for line in guarded().splitlines() if not line.startswith("standardise"))
    path.write_text(old)
    config = load(None, ["data.standardise=federation", "experiment.shots=[]"])
    with pytest.raises(PolicyError, match="standardise"):
        ask(policy_of(path), "train", config, column_sums=True)
    path.write_text(guarded())
    ask(policy_of(path), "train", config, column_sums=True)
