"""Seconds and memory to average a cohort's deltas: streamed into one accumulator, against list-then-stack.

    python benchmarks/aggregate.py [--quick]

Every delta is made just before it is added and dropped right after, as replies come and go; making it
is not timed. Peak memory is the process's high-water mark less what making deltas one by one needs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import torch
from rich.console import Console
from rich.table import Table

from server.aggregate import Mean

SITES = 50


def deltas(parameters: int) -> Iterator[torch.Tensor]:
    """Yield one site's delta after another, `[parameter]` float32."""
    base = torch.randn(parameters, generator=torch.Generator().manual_seed(0))
    for site in range(SITES):
        yield base * (1 + site / SITES)


def streamed(parameters: int) -> tuple[float, torch.Tensor]:
    """Return the seconds spent adding, and the mean."""
    started = time.perf_counter()
    mean = Mean(parameters)
    spent = time.perf_counter() - started
    for delta in deltas(parameters):
        started = time.perf_counter()
        mean.add(delta, 1.0)
        spent += time.perf_counter() - started
    started = time.perf_counter()
    result = mean.result()
    return spent + time.perf_counter() - started, result


def stacked(parameters: int) -> tuple[float, torch.Tensor]:
    """Return the same, holding the whole cohort first as stock strategies do."""
    cohort = list(deltas(parameters))
    started = time.perf_counter()
    result = torch.stack(cohort).mean(0)
    return time.perf_counter() - started, result


def measured(how: Callable[[int], tuple[float, torch.Tensor]], parameters: int) -> tuple[float, float, float]:
    """Return seconds, peak MiB over the base, and a checksum, from a process of its own."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_child, args=(how.__name__, parameters, theirs)
    )
    process.start()
    answer: tuple[float, float, float] = ours.recv()
    process.join()
    return answer


def _child(how: str, parameters: int, pipe: Connection) -> None:
    """Measure in a fresh process whose high-water mark already holds one base and one delta in flight."""
    function = {"streamed": streamed, "stacked": stacked}[how]
    function(1000)
    for place, _ in enumerate(deltas(parameters)):
        if place == 1:
            break
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, result = function(parameters)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    pipe.send((seconds, peak, float(result.double().sum())))


def main() -> None:
    """Print the table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 5")
    repeats = 3 if parser.parse_args().quick else 5
    parameters = 10_000_000
    table = Table(title=f"Mean of {SITES} deltas of {parameters:,} parameters (float32)")
    for column in ("how", "seconds", "peak MiB over base"):
        table.add_column(column, justify="left" if column == "how" else "right")
    figures: dict[str, float] = {"sites": SITES, "parameters": parameters}
    sums = {}
    for how in (streamed, stacked):
        runs = [measured(how, parameters) for _ in range(repeats)]
        seconds, peak = (statistics.median(run[place] for run in runs) for place in (0, 1))
        sums[how.__name__] = runs[0][2]
        table.add_row(how.__name__, f"{seconds:.3f}", f"{peak:.0f}")
        figures |= {f"{how.__name__}_s": round(seconds, 4), f"{how.__name__}_mib": round(peak, 1)}
    assert abs(sums["streamed"] - sums["stacked"]) <= 1e-3 * abs(sums["stacked"]) + 1.0
    figures["time_ratio"] = round(figures["streamed_s"] / figures["stacked_s"], 3)
    figures["memory_ratio"] = round(figures["streamed_mib"] / figures["stacked_mib"], 4)
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
