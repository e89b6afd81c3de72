"""Whether the tests notice when the code that protects a hospital is wrong: mutation testing with mutmut.

    python benchmarks/mutants.py [--share 0.25] [--seed 0] [--workers 2] [--report-only]

Every mutant is one small change to one function of the modules in pyproject.toml's [tool.mutmut]: an operator
swapped, an argument dropped or None, a number one higher, a text changed. It is killed where a test fails, or
overruns five times the time that the tests need. Printed are the kill rate by module, every mutant that
survives (the line as it is, and as the mutant has it), and what is never mutated. With a share below 1 a
seeded draw over all mutants is tried, and the rate comes with its 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name
from rich.console import Console
from rich.table import Table

KILLED, NOTICED = "killed", ("killed", "timeout", "segfault")
"""What mutmut says of a mutant that a test noticed."""
Outcomes = Mapping[str, str]
"""What became of each mutant that was tried, by name."""
console = Console(width=160)


def all_mutants() -> dict[str, Path]:
    """Return every mutant's file by the mutant's name, in a lasting order."""
    return {
        get_mutant_name(path, name): path
        for path in sorted(walk_mutatable_files())
        for name in mutate_file_contents(str(path), path.read_text()).mutant_names
    }


def draw(names: Sequence[str], share: float, seed: int) -> list[str]:
    """Return a seeded draw of the mutants; all of them where `share` is 1."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    return sorted(chance.sample(list(names), math.ceil(share * len(names))))


def run(names: Sequence[str], workers: int) -> None:
    """Try these mutants; mutmut keeps the outcomes below mutants/."""
    mutmut = Path(sys.executable).with_name("mutmut")
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    subprocess.run([mutmut, "run", f"--max-children={workers}", *names], check=True, env=environment)


def outcomes(paths: Sequence[Path]) -> Outcomes:
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


def change(name: str, path: Path) -> tuple[str, str]:
    """Return the lines as they are, and as the mutant has them."""
    lines = [line for line in get_diff_for_mutant(name, path=path).splitlines()[3:] if "def " not in line]
    old, new = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in ("-", "+"))
    return old, new


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


def report(tried: Outcomes, files: Mapping[str, Path], of: int) -> None:
    """Print the kill rates, the survivors, and what is never mutated."""
    table = Table("module", "tried", "killed", "rate", box=None)
    for path in sorted(set(files.values())):
        each = [status for name, status in tried.items() if files[name] == path]
        if each:
            killed = sum(status in NOTICED for status in each)
            table.add_row(str(path), str(len(each)), str(killed), f"{killed / len(each):.1%}")
    console.print(table)
    killed = sum(status in NOTICED for status in tried.values())
    low, high = interval(killed, len(tried))
    by_status = ", ".join(f"{count} {status}" for status, count in Counter(tried.values()).most_common())
    console.print(f"{len(tried)} of {of} mutants: {by_status}.", highlight=False)
    console.print(f"Kill rate {killed / len(tried):.1%} (95 % interval {low:.1%} to {high:.1%}).")
    console.print("\nSurvivors:")
    for name, status in tried.items():
        if status not in NOTICED:
            old, new = change(name, files[name])
            console.print(
                f"{name} ({status})\n  - {old}\n  + {new}", markup=False, highlight=False, soft_wrap=True
            )
    console.print("\nNever mutated, beside module constants and class bodies:")
    for place, what in excluded():
        console.print(f"{place}  {what}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the mutants, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="regular expression that a mutant's name must match")
    parser.add_argument("--report-only", action="store_true")
    chosen = parser.parse_args()
    files = {name: path for name, path in all_mutants().items() if re.search(chosen.only, name)}
    if not chosen.report_only:
        run(draw(list(files), chosen.share, chosen.seed), chosen.workers)
    found = outcomes(sorted(set(files.values())))
    tried = {name: status for name, status in found.items() if status != "not checked" and name in files}
    report(tried, files, len(files))


if __name__ == "__main__":
    main()
