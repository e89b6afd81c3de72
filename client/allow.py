"""What an operator is told of hospitals that wait for a word, and the word (`client.cohorts`)."""

from __future__ import annotations

from client.cohorts import Cohort, Waiting
from client.home import Home
from client.node import vault_of
from client.policy import policy_of

GIVES_AWAY = (
    "Whoever has both sums can subtract them. What is left is the part of those who are in one only: nearly, "
    "where a model is trained, and the nearer the less its weights have moved in between; exactly, where "
    "columns of tables are summed. From one hospital's part, images or single values of its patients can be "
    "found. It is theirs that is given away, so ask them before you allow it."
)


def waiting(home: Home) -> list[Waiting]:
    """Return what waits for the operator's word."""
    with vault_of(home).cohorts(policy_of(home.policy)) as memory:
        return memory.waiting()


def explain(one: Waiting) -> list[str]:
    """Return in plain language, paragraph by paragraph, what waits, why, and what it can give away."""
    asked = f"The coordinator asks for sums over {listed(one.cohort)}."
    return [asked, *(_difference(one.cohort, other) for other in one.near or [one.cohort]), GIVES_AWAY]


def listed(cohort: Cohort) -> str:
    """Return the names of hospitals."""
    return ", ".join(sorted(cohort.hospitals))


def allow(home: Home, one: Waiting) -> None:
    """Remember that these hospitals may be summed over, whatever was summed until they were shown."""
    with vault_of(home).cohorts(policy_of(home.policy)) as memory:
        memory.allow(one)


def _difference(cohort: Cohort, other: Cohort) -> str:
    joined, left = cohort.without(other), other.without(cohort)
    changed = sorted(set(joined) & set(left))
    told = {
        "joined since": [name for name in joined if name not in changed],
        "left since": [name for name in left if name not in changed],
        "came back under another key": changed,
    }
    words = "; ".join(f"{', '.join(names)} {verb}" for verb, names in told.items() if names)
    if not words:
        return "This hospital's columns were summed before over other hospitals, or over not all of these."
    return f"This hospital's part was summed before over {listed(other)}: {words}."
