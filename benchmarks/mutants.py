"""Whether the tests notice when the code that protects a hospital is wrong: mutation testing with mutmut.

    python benchmarks/mutants.py [--share 0.25] [--seed 0] [--workers 2] [--seconds 20] [--report-only]

Every mutant is one small change to one function of the modules in pyproject.toml's [tool.mutmut]: an operator
swapped, an argument dropped or None, a number one higher, a text changed. It is killed where a test fails, or
overruns three times the time that the tests need. The tests of a function are tried quickest first; with
`--seconds` only the quickest, that take so long together: what survives them is tried again with all by
`--what survivors`. Printed are the kill rate by module, every mutant that survives (the line as it is, and as
the mutant has it), and what is never mutated. With a share below 1 a seeded draw over all mutants is tried,
and the rate comes with its 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import ndiff
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _pytest.config import _prepareconfig
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import change_cwd, walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name
from mutmut.workers import isolation
from rich.console import Console
from rich.table import Table

NOTICED = ("killed", "timeout", "segfault")
"""What mutmut says of a mutant that a test noticed."""
SESSION = ("-s", "--rootdir=.", "--hypothesis-profile=first-failure")
UNTRIED = "not checked"
Outcomes = Mapping[str, str]
"""What became of each mutant that was tried, by name."""
console = Console(width=160)


class Mutant(NamedTuple):
    """One change: its file, the changed lines as they are, and as the mutant has them."""

    path: Path
    old: str
    new: str


def all_mutants() -> dict[str, Mutant]:
    """Return every mutant by its name, in a lasting order."""
    found: dict[str, Mutant] = {}
    for path in sorted(walk_mutatable_files()):
        mutated = mutate_file_contents(str(path), path.read_text())
        lines = mutated.code.splitlines()
        functions = {
            node.name: lines[node.body[0].lineno - 1 : node.end_lineno]
            for node in ast.walk(ast.parse(mutated.code))
            if isinstance(node, ast.FunctionDef)
        }
        for name in mutated.mutant_names:
            before = functions[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"]
            found[get_mutant_name(path, name)] = Mutant(path, *change(before, functions[name]))
    return found


def change(before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    """Return the lines that differ, each side as one line."""
    lines = [line for line in ndiff(before, after) if line[0] in "-+"]
    old, new = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return old, new


def draw(names: Sequence[str], share: float, seed: int) -> list[str]:
    """Return a seeded draw of the mutants; all of them where `share` is 1."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    return sorted(chance.sample(list(names), math.ceil(share * len(names))))


class Collected(PytestRunner):
    """Runs a mutant's tests, quickest first, in a session collected once, before the mutants fork."""

    items: Mapping[str, pytest.Item] | None = None

    def warm_up(self) -> None:
        """Collect, and keep the session open."""
        arguments = [
            "-s",
            "--rootdir=.",
            *self._pytest_add_cli_args,
            *self._pytest_add_cli_args_test_selection,
        ]
        with change_cwd("mutants"):
            session = pytest.Session.from_config(_prepareconfig(arguments))
            session.config._do_configure()
            session.config.hook.pytest_sessionstart(session=session)
            session.config.hook.pytest_collection(session=session)
        self.items = {item.nodeid: item for item in session.items}

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        """Return 1 as soon as a test fails; what killed other mutants of the same function comes first."""
        if self.items is None or mutant_name is None:
            return super().run_tests(mutant_name=mutant_name, tests=tests)
        with change_cwd("mutants"):
            killers = Path("killers", mutant_name.rpartition("__mutmut_")[0])
            killers.parent.mkdir(exist_ok=True)
            kills = Counter(killers.read_text().splitlines() if killers.exists() else ())
            ordered = sorted(quickest_first(tests), key=lambda test: -kills[test])
            for test, following in pairwise([*ordered, None]):
                item, then = self.items[test], self.items.get(following)
                item.ihook.pytest_runtest_protocol(item=item, nextitem=then)
                if item.session.testsfailed:
                    with killers.open("a") as file:
                        file.write(f"{test}\n")
                    return 1
        return 0


def run(names: Sequence[str], workers: int, seconds: float) -> None:
    """Try these mutants; mutmut keeps the outcomes below mutants/."""
    collect = mutmut.collect_or_load_stats

    def within_seconds(*given: Any, **named: Any) -> None:
        collect(*given, **named)
        for name, tests in state().tests_by_mangled_function_name.items():
            ordered = quickest_first(tests)
            ends = accumulate(state().duration_by_test[test] for test in ordered)
            kept = [test for test, end in zip(ordered, ends, strict=True) if end <= seconds]
            state().tests_by_mangled_function_name[name] = set(kept or ordered[:1])

    mutmut.collect_or_load_stats = within_seconds
    isolation.PytestRunner = Collected  # type: ignore[misc]
    os.environ["PYTHONHASHSEED"] = "0"
    mutmut._run(list(names), workers)


def quickest_first(tests: Iterable[str]) -> list[str]:
    """Return the tests, those first that took least when nothing was changed."""
    return sorted(tests, key=lambda test: (state().duration_by_test[test], test))


def is_of(what: str, outcome: str) -> bool:
    """Say whether a mutant with this outcome is to be tried now."""
    tried = outcome != UNTRIED
    return {"all": True, "untried": not tried, "survivors": tried and outcome not in NOTICED}[what]


def outcomes(paths: Iterable[Path]) -> Outcomes:
    """Return what became of the mutants of these files."""
    found: dict[str, str] = {}
    for path in paths:
        data = SourceFileMutationData(path=path)
        data.load()
        found |= {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
    return found


def interval(killed: int, tried: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate."""
    z, rate = 1.96, killed / tried
    middle = (rate + z * z / (2 * tried)) / (1 + z * z / tried)
    half = z / (1 + z * z / tried) * math.sqrt(rate * (1 - rate) / tried + z * z / (4 * tried * tried))
    return middle - half, middle + half


def excluded() -> Iterator[tuple[str, str]]:
    """Yield (place, what) for all in the mutated files that is never mutated."""
    patterns = [re.compile(pattern) for pattern in config().do_not_mutate_patterns]
    for path in sorted(walk_mutatable_files()):
        source = path.read_text()
        for number, line in enumerate(source.splitlines(), start=1):
            if any(pattern.search(line) for pattern in patterns):
                yield f"{path}:{number}", line.strip()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                decorators = [ast.unparse(one) for one in node.decorator_list]
                if set(decorators) - {"staticmethod", "classmethod"}:
                    yield f"{path}:{node.lineno}", f"{node.name}, decorated {', '.join(decorators)}"


def report(tried: Outcomes, mutants: Mapping[str, Mutant]) -> None:
    """Print the kill rates, the survivors, and what is never mutated."""
    table = Table("module", "tried", "killed", "rate", box=None)
    for path in sorted({mutant.path for mutant in mutants.values()}):
        each = [status for name, status in tried.items() if mutants[name].path == path]
        if each:
            killed = sum(status in NOTICED for status in each)
            table.add_row(str(path), str(len(each)), str(killed), f"{killed / len(each):.1%}")
    console.print(table)
    killed = sum(status in NOTICED for status in tried.values())
    low, high = interval(killed, len(tried))
    by_status = ", ".join(f"{count} {status}" for status, count in Counter(tried.values()).most_common())
    console.print(f"{len(tried)} of {len(mutants)} mutants: {by_status}.", highlight=False)
    console.print(f"Kill rate {killed / len(tried):.1%} (95 % interval {low:.1%} to {high:.1%}).")
    console.print("\nSurvivors:")
    for name, status in tried.items():
        if status not in NOTICED:
            text = f"{name} ({status})\n  - {mutants[name].old}\n  + {mutants[name].new}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print("\nNever mutated, beside module constants and class bodies:")
    for place, what in excluded():
        console.print(f"{place}  {what}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the mutants, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of tests a mutant, the quickest")
    parser.add_argument("--only", default="", help="regular expression that a mutant's name must match")
    parser.add_argument("--what", choices=("all", "untried", "survivors"), default="all")
    parser.add_argument("--report-only", action="store_true")
    chosen = parser.parse_args()
    mutants = {name: mutant for name, mutant in all_mutants().items() if re.search(chosen.only, name)}
    paths = sorted({mutant.path for mutant in mutants.values()})
    if not chosen.report_only:
        names = draw(list(mutants), chosen.share, chosen.seed)
        before = outcomes(paths)
        names = [name for name in names if is_of(chosen.what, before.get(name, UNTRIED))]
        run(names, chosen.workers, chosen.seconds)
    found = outcomes(paths)
    report({name: found[name] for name in mutants if found.get(name, UNTRIED) != UNTRIED}, mutants)


if __name__ == "__main__":
    main()
