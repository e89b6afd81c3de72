"""How many honest sites any sum that opens covers, checked by machine against `common.secagg.numbers`.

    python benchmarks/honest_bound.py [--quick]

The claim (docs/security.md, "Why the sum is all"): with n holders, threshold t and at most n_c identities in
the adversary's hands, 2 t > n + n_c, every sum that opens covers at least
ceil((n - n_c) (2t - n - n_c) / (t - n_c)) honest sites. Two checks:

- exhaustive, for n to 6, all t, n_c and degrees that a site accepts: whatever the coordinator shows to
  whom. A slot falls into worlds (holders' digests), which share nothing; in a world, groups of honest sites
  are shown the same plan D. Every honest site of a group answers once or never, naming survivors among those
  who signed its D. All that it can name is tried; what is known then is which s and which b have t shares.
  What opens is exactly the connected parts of the graph of unknown pair masks all of whose b are known.
- by counting, for every n to 255 with the default t, every n_c that a site accepts, and every number of
  colluders, cohort and colluders in it: how many can be revealed at most, how many honest are left, and
  whether the sparse graph stays in one piece.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
from rich.console import Console
from rich.table import Table

from common.errors import SecAggError
from common.secagg.numbers import Numbers, Policy, default_numbers, least_degree, neighbours

SHOWN = (3, 4, 5, 6, 7, 8, 10, 13, 16, 20, 32, 33, 50, 100, 255)
Named = frozenset[int]


@dataclass(frozen=True)
class View:
    """One plan D in a world: who signed it, and who of the honest is in its cohort without having signed."""

    signers: tuple[int, ...]
    others: tuple[int, ...]
    colluders: int
    """The adversary's identities in the cohort."""

    def answers(self, site: int, threshold: int) -> Iterator[Named]:
        """Yield every set of honest survivors, `site` among them, that it answers to."""
        rest = [peer for peer in self.signers if peer != site]
        for count in range(max(threshold - self.colluders - 1, 0), len(rest) + 1):
            for chosen in combinations(rest, count):
                yield frozenset((site, *chosen))

    def dropped(self, survivors: Named) -> Named:
        """Return whom an answer names dropped."""
        return frozenset((*self.signers, *self.others)) - survivors


@cache
def outcomes(views: tuple[View, ...], threshold: int, colluders: int) -> frozenset[tuple[Named, Named]]:
    """Return every (sites whose s is known, sites whose b is known) that a coordinator can bring about.

    `colluders` shares of every secret are the adversary's from the start.
    """
    needed = threshold - colluders
    sites = sorted({site for view in views for site in (*view.signers, *view.others)})
    place = {site: number for number, site in enumerate(sites)}
    states = {(0,) * (2 * len(sites))}
    for view in views:
        for site in view.signers:
            moves = []
            for survivors in view.answers(site, threshold):
                move = [0] * (2 * len(sites))
                for peer in view.dropped(survivors):
                    move[2 * place[peer]] += 1
                for peer in survivors:
                    move[2 * place[peer] + 1] += 1
                moves.append(move)
            states |= {
                tuple(min(one + more, needed) for one, more in zip(state, move, strict=True))
                for state in states
                for move in moves
            }
    return frozenset(
        (
            frozenset(site for site in sites if state[2 * place[site]] >= needed),
            frozenset(site for site in sites if state[2 * place[site] + 1] >= needed),
        )
        for state in states
    )


def parts(circle: tuple[int, ...], degree: int, known: Named) -> Iterator[Named]:
    """Yield the connected parts of a cohort's honest sites by pair masks that are not known.

    `circle` has the cohort in order, -1 for an adversary's identity; `known` are the sites whose s is known.
    """
    left = {position for position, site in enumerate(circle) if site >= 0}
    edges = {position: neighbours(position, len(circle), degree) for position in left}
    while left:
        part, frontier = set(), [left.pop()]
        while frontier:
            position = frontier.pop()
            part.add(circle[position])
            if circle[position] in known:
                continue
            reached = {peer for peer in edges[position] if peer in left and circle[peer] not in known}
            left -= reached
            frontier += reached
        yield frozenset(part)


def smallest_opened(numbers: Numbers, colluders: int) -> int:
    """Return the fewest honest sites of any sum that opens, of all that a coordinator can show; n if none.

    AssertionError: two plans of one world have answers, which 2 t > n + n_c excludes.
    """
    n, t = numbers.holders, numbers.threshold
    smallest = n
    for held in range(colluders + 1):
        for present in range(n - held + 1):  # honest sites that dealt in this world
            for first in range(1, present + 1):  # those of them who signed D
                second = present - first  # the most who may have signed another
                assert not (first + held >= t and second + held >= t), (numbers, held)
                for others, inside in product(range(second + 1), range(held + 1)):
                    if t <= first + others + inside:
                        view = View(tuple(range(first)), tuple(range(first, first + others)), inside)
                        smallest = min(smallest, _smallest(view, numbers, held))
    return smallest


def _smallest(view: View, numbers: Numbers, colluders: int) -> int:
    """Return the fewest honest sites of any sum that opens in one view, wherever they sit in the circle."""
    reached = outcomes((view,), numbers.threshold, colluders)
    honest = (*view.signers, *view.others)
    size, smallest = len(honest) + view.colluders, numbers.holders
    for circle in _circles(honest, view, size, numbers.degree):
        for known_s, known_b in reached:
            open_ = known_b & frozenset(view.signers)
            for part in parts(circle, numbers.degree, known_s):
                if part <= open_:
                    smallest = min(smallest, len(part))
    return smallest


def _circles(honest: tuple[int, ...], view: View, size: int, degree: int) -> Iterable[tuple[int, ...]]:
    """Return the circles to look at: one where all pairs are masked, else every place of each kind."""
    if len(neighbours(0, size, degree)) == size - 1:
        return [honest + (-1,) * view.colluders]
    circles = []
    for positions in combinations(range(size), view.colluders):
        rest = [position for position in range(size) if position not in positions]
        for places in combinations(rest, len(view.others)):
            signers, others = iter(view.signers), iter(view.others)
            circles.append(
                tuple(
                    -1 if at in positions else next(others) if at in places else next(signers)
                    for at in range(size)
                )
            )
    return circles


def accepted(numbers: Numbers, colluders: int) -> bool:
    """Return whether a site that reckons with so many colluders takes part, if it asks for any honest."""
    try:
        Policy(min_cohort=1, colluders=colluders, low_threshold=True).check(numbers, 0)
    except SecAggError:
        return False
    return True


def exhaustive(most: int) -> list[tuple[Numbers, int, int, int]]:
    """Return (numbers, n_c, claimed, found) for all that a site accepts up to `most` holders."""
    rows = []
    for n in range(2, most + 1):
        for t, colluders in product(range(1, n + 1), range(n)):
            if not accepted(Numbers(n, t, n - 1), colluders):
                continue
            for degree in range(least_degree(Numbers(n, t, n - 1), colluders), n):
                numbers = Numbers(n, t, degree)
                claimed = numbers.fewest_honest(colluders)
                rows.append((numbers, colluders, claimed, smallest_opened(numbers, colluders)))
    return rows


def counted(n: int) -> list[tuple[Numbers, int, int, int, int]]:
    """Return (numbers, n_c, claimed, counted, most removed) for n holders and every n_c that a site accepts.

    For every number of colluders a to n_c, a cohort of c and a' colluders in it: at most c - a' honest sites
    answer, each naming at most c - t dropped, and t - a must name a site for its s to come out.
    """
    rows: list[tuple[Numbers, int, int, int, int]] = []
    fewest, removed = n, 0
    for colluders in range(n):
        numbers = default_numbers(n, colluders=colluders)
        if not accepted(numbers, colluders):
            break
        t = numbers.threshold
        cohort = np.arange(t, n + 1)[:, None]
        inside = np.arange(colluders + 1)[None, :]
        revealed = (cohort - inside) * (cohort - t) // (t - colluders)
        fewest = min(fewest, int((cohort - inside - revealed).min()))
        removed = max(removed, int((revealed + inside).max()))
        rows.append((numbers, colluders, numbers.fewest_honest(colluders), fewest, removed))
    return rows


def connected(numbers: Numbers, removed: int) -> bool:
    """Return whether the mask graph of a cohort of any size stays in one piece without so many sites."""
    return all(
        len(neighbours(0, cohort, numbers.degree)) > min(removed, cohort - 2)
        for cohort in range(numbers.threshold, numbers.holders + 1)
    )


def main() -> None:
    """Check, and print the table of docs/security.md and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="exhaustively for n to 5 only")
    most = 5 if parser.parse_args().quick else 6
    tried = exhaustive(most)
    for numbers, colluders, claimed, found in tried:
        if found < claimed:
            raise SystemExit(f"{numbers}, n_c = {colluders}: {found} honest where {claimed} were claimed.")
    reached = sum(found == claimed for _, _, claimed, found in tried)
    count, table = 0, Table(title="Honest sites in any sum that opens, at least")
    for column in ("n", "t", "n_c = 0", "1", "2", "3", "most n_c", "masks a site, n_c = 1"):
        table.add_column(column, justify="right")
    for n in range(2, 256):
        rows = counted(n)
        for numbers, colluders, claimed, fewest, removed in rows:
            if fewest != claimed or not connected(numbers, removed):
                raise SystemExit(f"{numbers}, n_c = {colluders}: counted {fewest}, claimed {claimed}.")
        count += len(rows)
        if n in SHOWN:
            cells = [str(rows[c][2]) if c < len(rows) else "" for c in range(4)]
            usual = default_numbers(n)
            table.add_row(str(n), str(usual.threshold), *cells, str(len(rows) - 1), str(usual.degree))
    console = Console()
    console.print(table)
    console.print(f"Exhaustively, n to {most}: {len(tried)} settings hold; {reached} reach the bound.")
    console.print(f"By counting, n to 255: {count} settings hold.")
    print(json.dumps({"exhaustive": len(tried), "reached": reached, "counted": count}))


if __name__ == "__main__":
    main()
