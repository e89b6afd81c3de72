"""Processor time by turns, and peak memory in a process of its own: what several benchmarks measure alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def best_by_turns(
    subjects: Mapping[str, Callable[[], object]], turns: int, *, each: int = 1
) -> dict[str, float]:
    """Return each one's best time in milliseconds of processor time; a turn is `each` calls of it."""
    best = dict.fromkeys(subjects, float("inf"))
    for _ in range(turns):
        for name, once in subjects.items():
            for _ in range(each):
                start = time.process_time()
                once()
                best[name] = min(best[name], 1000 * (time.process_time() - start))
    return best


def memory_of_its_own(script: str, what: object) -> float:
    """Return the number that `script --measure WHAT` prints last, in a process of its own."""
    words = [sys.executable, script, "--measure", json.dumps(what)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def added_memory(once: Callable[[], object], times: int) -> float:
    """Return what some calls add to this process's peak memory, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    base = _peak()
    for _ in range(times):
        once()
    return _peak() - base


def _peak() -> float:
    """Return this process's peak memory in MiB since its peak was forgotten (Linux, proc(5))."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1024
