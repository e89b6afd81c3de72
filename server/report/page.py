"""A run's report: from `results.json` to one HTML page that needs nothing but itself."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from common.files import write_text
from common.tasks import TITLES
from server.report import plots, rounds
from server.report.board import Board, Row
from server.report.words import class_name, listing

YARDSTICK = "pooled"
"""Trains on all patients in one place: what sharing would gain, not something a federation may choose."""


SEEN = {
    "secure": ["Of the hospitals' updates the coordinator saw nothing but each round's sum."],
    "plain": ["The coordinator saw every hospital's own update: secure aggregation was off."],
}
"""What a deployed run's coordinator saw."""


def headline(results: Row) -> list[str]:
    """Return what the run found, in sentences: who leads where, the weakest hospital, what is certain."""
    board = Board.of(results.get("rows") or [], results["metric"])
    told = results.get("rounds") or []
    idle, more = [*rounds.idle(told), *rounds.barred(told)], rounds.unfinished(told)
    seen = SEEN.get(results.get("aggregation", ""), [])
    if not _judged(board, results.get("left_out") or []):
        hospitals = len(results.get("hospitals") or [])
        trained = f"Meta-trained over {hospitals} hospitals; no hospital was held out, so nothing was judged."
        return [*idle, trained, *more, *seen]
    if not board.cells:
        return [*idle, "Nothing could be measured; what was left out, and why, stands below."]
    said = [_leads(board, board.algorithms)]
    if YARDSTICK in said[0]:
        others = [name for name in board.algorithms if name != YARDSTICK]
        said.append(f"Without {YARDSTICK}, which needs all patients in one place: {_leads(board, others)}")
    differences = Board.of(results.get("differences") or [], board.metric)
    references = {row["reference"] for row in results.get("differences") or []}
    certain = (_certain(differences, reference) for reference in sorted(references))
    said = [*idle, *said, _weakest(board), *certain, *more, *seen]
    return [sentence[0].upper() + sentence[1:] for sentence in said if sentence]


def _judged(board: Board, left_out: Collection[Row]) -> bool:
    """Return whether hospitals were held out to be judged; who is left out of the whole run was not."""
    return bool(board.cells) or any(one.get("shot") is not None for one in left_out)


def _leads(board: Board, names: Collection[str]) -> str:
    """Return who has the best mean over hospitals at which K, and by how much."""
    led: dict[tuple[str, ...], dict[int, float]] = {}
    for shot in board.shots:
        means = {name: cell.value for name in names if (cell := board.mean(name, shot))}
        if len(means) < 2:
            continue
        leaders = tuple(name for name in means if name in board.best(means))
        rest = [abs(value - means[leaders[0]]) for name, value in means.items() if name not in leaders]
        led.setdefault(leaders, {})[shot] = min(rest, default=0.0)
    if not led:
        return ""
    parts = [f"{listing(who)} at {_at(margins)}{_ahead(margins.values())}" for who, margins in led.items()]
    return f"best mean {board.title} over held-out hospitals: {'; '.join(parts)}."


def _ahead(margins: Collection[float]) -> str:
    low, high = f"{min(margins):.3f}", f"{max(margins):.3f}"
    if high == "0.000":
        return ""
    return f" (ahead by {low})" if low == high else f" (ahead by {low} to {high})"


def _weakest(board: Board) -> str:
    """Return every algorithm's weakest hospital, over the K at which all algorithms were measured."""
    shots = [k for k in board.shots if set(board.measured(k)) == set(board.algorithms) and board.common(k)]
    if not shots:
        return ""
    parts = []
    for name in board.algorithms:
        found = [(cell, shot) for shot in shots if (cell := board.worst(name, shot))]
        cell, shot = min(found, key=lambda pair: board.goodness(pair[0]))
        parts.append(f"{name} {cell.value:.3f} ({cell.site}, K = {shot})")
    return f"weakest hospital over {_at(shots)}: {', '.join(parts)}."


def _certain(differences: Board, reference: str) -> str:
    """Return how often the reference beats each algorithm, or loses, beyond the paired interval."""
    parts = []
    sign = -1 if differences.lower_is_better else 1
    for name in differences.algorithms:
        verdicts = [sign * cell.verdict for key, cell in differences.cells.items() if key[0] == name]
        better, worse = verdicts.count(1), verdicts.count(-1)
        parts.append(f"against {name} better in {better}, worse in {worse}, undecided in {verdicts.count(0)}")
    return f"{reference}, paired over every hospital and K: {'; '.join(parts)}." if parts else ""


def sides(counts: Sequence[int | None] | None, least: int) -> str:
    """Return patients to learn from + patients to test on; below the least a hospital does not tell."""
    learned, tested = (f"<{least}" if count is None else str(count) for count in counts or (None, None))
    return f"{learned} + {tested}".replace(" ", "\N{NO-BREAK SPACE}")


def _at(shots: Iterable[int]) -> str:
    return f"K = {listing(shots)}"


@dataclass(frozen=True)
class Picture:
    """A picture for the report, with what it shows."""

    words: str
    png: bytes

    @property
    def uri(self) -> str:
        """The picture as it stands within a page."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


def write_report(results: Row, path: Path, pictures: Sequence[Picture] = ()) -> None:
    """Write `results` as one self-contained page at `path`; the same results give the same bytes.

    The page loads nothing and runs nothing. It appears whole or not at all.
    """
    page = (
        environment("server.report")
        .get_template("report.html.j2")
        .render({**_context(results), "pictures": pictures})
    )
    write_text(path, page)


def environment(package: str) -> Environment:
    """Return what renders `package`'s templates, which may include the report's style."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("server.report", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "percent": percent, "listing": listing, "sides": sides}
    return made


def _context(results: Row) -> dict[str, Any]:
    """Return everything the template shows; whatever `results` lack is empty."""
    parts = ("rows", "differences", "hurt", "recipes", "rounds", "left_out", "hospitals", "curves")
    lists = {name: list(results.get(name) or []) for name in parts}
    board = Board.of(lists["rows"], results["metric"])
    task = results["task"]
    calibration = Board.of(lists["rows"], "ece")
    per_class = " per class" if task.get("kind", "classification") == "classification" else ""
    others = [Board.of(lists["rows"], name) for name in TITLES if name != board.metric]
    references = sorted({row["reference"] for row in lists["differences"]})
    return {
        **lists,
        "run": {"parameters": None, "timing": None, "date": "", "export": "", **results},
        "per_class": per_class,
        "counted": [
            name
            for name in task["classes"]
            if any(name in (hospital.get("per_class") or {}) for hospital in lists["hospitals"])
        ],
        "headline": headline(results),
        "board": board,
        "others": [replace(other, algorithms=board.algorithms) for other in others if other.cells],
        "calibration": calibration,
        "paired": [
            (name, Board.of((row for row in lists["differences"] if row["reference"] == name), board.metric))
            for name in references
        ],
        "hurt": Board.of(lists["hurt"], "hurt", value="share"),
        "recipes": _recipes(lists["recipes"]),
        "shot_curves": plots.shot_curves(
            (row for row in lists["rows"] if row["metric"] == board.metric),
            (f"K, patients{per_class}", board.title),
        ),
        "roc_curves": plots.roc_curves(lists["curves"], board.algorithms),
        "reliability_curves": plots.reliability_curves(
            lists["curves"], board.algorithms, _mean_errors(calibration)
        ),
        "questions": _questions(task),
        "loss_curves": plots.loss_curves(lists["rounds"]),
        "absences": rounds.absences(lists["rounds"]),
        "judged": _judged(board, lists["left_out"]),
        "class_names": {name: class_name(task["label"], name) for name in task["classes"]},
    }


def _mean_errors(calibration: Board) -> dict[tuple[str, int], float]:
    """Return each algorithm's mean calibration error at each K, as the table tells it."""
    cells = {
        (name, shot): calibration.mean(name, shot)
        for name in calibration.algorithms
        for shot in calibration.shots
    }
    return {key: cell.value for key, cell in cells.items() if cell}


def _questions(task: Row) -> str:
    """Return what a probability of a curve is of."""
    if task.get("kind", "classification") == "multi-label":
        return "each finding"
    classes = task["classes"]
    return class_name(task["label"], classes[1]) if len(classes) == 2 else "each class against the rest"


def _recipes(rows: Iterable[Row]) -> dict[tuple[str, int], dict[tuple[str, float, int], list[str]]]:
    """Return per algorithm and K which recipe was chosen for which held-out hospitals."""
    chosen: dict[tuple[str, int], dict[tuple[str, float, int], list[str]]] = {}
    for row in rows:
        recipe = (row["scope"], row["inner_lr"], row["inner_steps"])
        chosen.setdefault((row["algorithm"], row["shot"]), {}).setdefault(recipe, []).append(row["site"])
    return chosen


def number(value: float, signed: bool = False) -> str:
    """Return `value` to three decimals with a true minus sign and no negative zero."""
    return f"{value:{'+' if signed else ''}z.3f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Return a share in [0, 1] as whole percent."""
    return f"{share:.0%}".replace("%", "\N{NO-BREAK SPACE}%")
