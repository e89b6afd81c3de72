"""A report's figures as inline SVG: small multiples that share their axes.

Text and axes take the page's own colour (`currentColor`), so a figure reads on light and dark; an
algorithm keeps one colour, dash and marker everywhere. matplotlib is imported only when a figure is
drawn (it takes a second) and only its object interface is used, so no global figure state remains.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
INK = "#010203"
"""Stands for the page's text colour until the figure is SVG; no algorithm has this colour."""


@dataclass(frozen=True)
class Stroke:
    """How an algorithm is drawn; colour, dash and marker each tell it apart alone."""

    colour: str
    dash: tuple[float, tuple[float, ...]]
    marker: str
    width: float = 1.3


STROKES = {
    "reptile": Stroke("#009e73", (0, ()), "o", 2.2),
    "fedavg": Stroke("#0072b2", (0, (5, 1.5)), "s"),
    "fedprox": Stroke("#c673a2", (0, (5, 1.5, 1, 1.5)), "^"),
    "local-only": Stroke("#d55e00", (0, (2, 1.2)), "D"),
    "pooled": Stroke("#808080", (0, (9, 2)), "X"),
    "maml": Stroke("#7a68d8", (0, (7, 1.5, 1, 1.5, 1, 1.5)), "P"),
    "fomaml": Stroke("#b0509b", (0, (3, 1)), "p"),
    "anil": Stroke("#d1495b", (0, (4, 1, 1, 1, 1, 1)), "*"),
    "protonet": Stroke("#00838f", (0, (8, 1.5, 3, 1.5)), "h"),
    "matching": Stroke("#5b8c00", (0, (3, 3)), "<"),
    "matching-fce": Stroke("#7d7d00", (0, (6, 3)), ">"),
    "siamese": Stroke("#9a6b4f", (0, (1, 2)), "d"),
    "fedbn": Stroke("#2f8f9d", (0, (2, 1, 1, 1)), "8"),
}
"""The first five are of Okabe and Ito's colour-blind-safe hues; each is at least 3:1 against either page."""
OTHER = Stroke("#a97500", (0, (1, 1)), "v")

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
WIDTH = 10.4
"""Inches that a full row of panels has; the page shows about that much without shrinking the text."""
PANEL = (3.3, 1.8)
"""Greatest width, and height, of one small panel in inches."""
SQUARE = (2.3, 2.3)
"""The same of a panel as high as it is wide."""
MOST_COLUMNS = 5
"""Panels side by side at most where each column has an algorithm of its own."""
AROUND = 0.35
"""How far curves stand about their K, in steps from one K to the next, at most."""
LEGEND, BESIDE = 6.8, 6
"""Inches that a line of a legend takes, and how many algorithms it has at most."""


def shot_curves(rows: Iterable[Row], labels: tuple[str, str]) -> Markup:
    """Return one panel per hospital: the metric against K, with 95 % intervals.

    `labels` name K and the metric; `rows` hold one metric. K is spaced evenly, whatever its values. Empty
    where K never varies.
    """
    measured = list(rows)
    shots = sorted({row["shot"] for row in measured})
    algorithms = list(dict.fromkeys(row["algorithm"] for row in measured))
    sites = list(dict.fromkeys(row["site"] for row in measured))
    if len(shots) < 2:
        return Markup()

    def draw(axes: Axes, site: str) -> None:
        axes.set_xticks(range(len(shots)), [str(shot) for shot in shots])
        axes.set_xlim(-AROUND, len(shots) - 1 + AROUND)
        for number, name in enumerate(algorithms):
            mine = sorted(
                (row for row in measured if row["site"] == site and row["algorithm"] == name),
                key=lambda row: int(row["shot"]),
            )
            at = aside(number, len(algorithms))
            _curve(axes, name, [shots.index(row["shot"]) + at for row in mine], mine)

    words = (
        f"{labels[1]} against K for each held-out hospital, one curve per algorithm; numbers in the table "
        "below."
    )
    svg = _multiples("curves", sites, draw, labels, algorithms)
    return _inline(svg, "curves", words)


def aside(number: int, count: int) -> float:
    """Return how far from its K the curve of such a number stands, of so many."""
    return min(0.06, 1.6 * AROUND / count) * (number - (count - 1) / 2)


def loss_curves(rounds: Iterable[Row]) -> Markup:
    """Return one panel per algorithm: loss against round, a line per meta-training and their mean."""
    told = list(rounds)
    algorithms = list(dict.fromkeys(row["algorithm"] for row in told))
    if not told:
        return Markup()
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes, name: str) -> None:
        lines: dict[str, dict[int, float]] = {}
        for row in told:
            if row["algorithm"] == name and row.get("loss") is not None:
                lines.setdefault(row["site"], {})[row["round"]] = row["loss"]
        stroke = STROKES.get(name, OTHER)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for line in lines.values():
            axes.plot(list(line), list(line.values()), color=stroke.colour, linewidth=0.7, alpha=0.45)
        every = sorted({number for line in lines.values() for number in line})
        at = [[line[number] for line in lines.values() if number in line] for number in every]
        axes.plot(every, [sum(losses) / len(losses) for losses in at], color=stroke.colour, linewidth=2.2)

    words = "Training loss against round for each algorithm; thin: one meta-training, bold: their mean."
    return _inline(_multiples("losses", algorithms, draw, ("round", "loss")), "losses", words)


def roc_curves(curves: Iterable[Row], order: Iterable[str]) -> Markup:
    """Return one panel per K: every algorithm's ROC curve (`results.json`'s `curves`), and guessing.

    `order` is that of the algorithms.
    """
    told = list(curves)
    shots = {f"K = {row['shot']}": row["shot"] for row in told}
    if not told:
        return Markup()

    def draw(axes: Axes, title: str) -> None:
        _unit_square(axes)
        for row in told:
            if row["shot"] == shots[title]:
                stroke = STROKES.get(row["algorithm"], OTHER)
                axes.plot(
                    row["roc"]["fpr"],
                    row["roc"]["tpr"],
                    color=stroke.colour,
                    linestyle=stroke.dash,
                    linewidth=stroke.width,
                    zorder=2 + stroke.width,
                )

    labels = ("false positive rate", "true positive rate")
    algorithms = _among(told, order)
    words = (
        "ROC curves, a panel for each K and a curve for each algorithm; the areas under them are the mean "
        "AUROC in the table above."
    )
    svg = _multiples("roc", list(shots), draw, labels, algorithms, shape=SQUARE)
    return _inline(svg, "roc", words)


def reliability_curves(
    curves: Iterable[Row], order: Iterable[str], errors: Mapping[tuple[str, int], float]
) -> Markup:
    """Return one panel per K and algorithm: how often it was so against what was stated, with intervals.

    `order` is that of the algorithms; `errors` has the calibration error of each at a K, told in its panel.
    """
    told = {f"{row['algorithm']}, K = {row['shot']}": row for row in curves}
    if not told:
        return Markup()
    algorithms = _among(told.values(), order)
    shots = list(dict.fromkeys(row["shot"] for row in told.values()))
    columns = len(algorithms) if 1 < len(algorithms) <= MOST_COLUMNS else 0
    places = [
        title for shot in shots for name in algorithms if (title := f"{name}, K = {shot}") in told or columns
    ]

    def draw(axes: Axes, title: str) -> None:
        _unit_square(axes)
        row = told[title]
        bins, stroke = row["reliability"], STROKES.get(row["algorithm"], OTHER)
        at = [one["stated"] for one in bins]
        axes.plot(
            at,
            [one["observed"] for one in bins],
            color=stroke.colour,
            linewidth=1.3,
            marker=stroke.marker,
            markersize=4,
        )
        low, high = ([one[bound] for one in bins] for bound in ("ci_low", "ci_high"))
        axes.vlines(at, low, high, color=stroke.colour, linewidth=1.0, alpha=0.75)
        error = errors.get((row["algorithm"], row["shot"]))
        if error is not None:
            axes.text(0.97, 0.05, f"ECE {error:.3f}", ha="right", fontsize=8)

    words = (
        "Reliability curves, a panel for each K and algorithm: how often it was so against the probability "
        "that was stated; on the diagonal both are equal. Numbers in the table below."
    )
    svg = _multiples(
        "reliability",
        [title if title in told else "" for title in places],
        draw,
        ("stated probability", "observed share"),
        shape=SQUARE,
        columns=columns,
    )
    return _inline(svg, "reliability", words)


def _among(curves: Iterable[Row], order: Iterable[str]) -> list[str]:
    """Return the algorithms that have curves, in order."""
    there = {row["algorithm"] for row in curves}
    return [name for name in order if name in there]


def _unit_square(axes: Axes) -> None:
    """Let both axes go from 0 to 1, with the diagonal."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.set_aspect("equal")
    axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=(0, (1, 2)), alpha=0.6)


def _curve(axes: Axes, name: str, places: Sequence[float], rows: Sequence[Row]) -> None:
    """Draw one algorithm's means and intervals; a mean without an interval has a marker alone."""
    stroke = STROKES.get(name, OTHER)
    axes.plot(
        places,
        [row["mean"] for row in rows],
        color=stroke.colour,
        linestyle=stroke.dash,
        linewidth=stroke.width,
        marker=stroke.marker,
        markersize=4,
        zorder=2 + stroke.width,
    )
    spans = [
        (place, row["ci_low"], row["ci_high"])
        for place, row in zip(places, rows, strict=True)
        if row.get("ci_low") is not None and row.get("ci_high") is not None
    ]
    if spans:
        axes.vlines(*zip(*spans, strict=True), color=stroke.colour, linewidth=1.0, alpha=0.75)


def _multiples(
    name: str,
    titles: Sequence[str],
    draw: Callable[[Axes, str], None],
    labels: tuple[str, str],
    legend: Sequence[str] = (),
    shape: tuple[float, float] = PANEL,
    columns: int = 0,
) -> str:
    """Return an SVG of one panel per title, all on the same axes; `name` seeds its ids.

    Where a title is empty, so is its place. `shape` is the greatest of a panel; `columns` is 0 where as many
    are side by side as look well.
    """
    import matplotlib as mpl

    with mpl.rc_context({**RC, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # names stay text, which the page's reader has a font for
        figure, panels = _panels(titles, legend, shape, columns)
        for axes, title in panels:
            draw(axes, title)
            axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        middle = (figure.subplotpars.left + figure.subplotpars.right) / 2
        figure.supxlabel(labels[0], fontsize=9, x=middle, y=0.06 / figure.get_figheight())
        figure.supylabel(labels[1], fontsize=9, x=0.12 / figure.get_figwidth())
        drawn = io.StringIO()
        undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=undated)
    return drawn.getvalue()


def _panels(
    titles: Sequence[str], legend: Sequence[str], shape: tuple[float, float], columns: int
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """Return a figure with an empty panel for each title, filled row by row, and the legend above them."""
    from matplotlib.figure import Figure

    count = len(titles)
    columns = columns or (count if count <= 3 else 3 if count in (5, 6, 9) else 4)
    rows = math.ceil(count / columns)
    wide = min(shape[0], (WIDTH - 0.5) / columns)
    used = columns * wide + 0.5
    width = max(used, LEGEND if legend else 0.0)
    top = 0.35 + 0.2 * math.ceil(len(legend) / BESIDE) if legend else 0.25
    height = rows * min(shape[1], wide) + top + 0.25
    figure = Figure(figsize=(width, height))
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    panels = [(axes, title) for axes, title in zip(grid, titles, strict=False) if title]
    shown = [axes for axes, _ in panels]
    for axes in grid:
        axes.set_visible(axes in shown)
    # The lowest visible panel of every column shows the axis, also above an empty corner.
    for column in range(columns):
        for axes in [axes for axes in grid[column::columns] if axes in shown][-1:]:
            axes.tick_params(labelbottom=True)
    _legend(figure, legend)
    figure.subplots_adjust(
        left=0.72 / width,
        right=(used - 0.08) / width,
        bottom=0.5 / height,
        top=1 - top / height,
        wspace=0.1,
        hspace=0.32,
    )
    return figure, panels


def _legend(figure: Figure, algorithms: Sequence[str]) -> None:
    """Put every algorithm's stroke and name above the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=stroke.colour,
            linestyle=stroke.dash,
            linewidth=stroke.width,
            marker=stroke.marker,
            markersize=4,
        )
        for stroke in (STROKES.get(name, OTHER) for name in algorithms)
    ]
    if handles:
        figure.legend(
            handles,
            algorithms,
            loc="upper left",
            ncols=min(len(handles), BESIDE),
            handlelength=3.2,
            borderaxespad=0,
        )


def _inline(svg: str, name: str, words: str) -> Markup:
    """Return the drawing for use within HTML: no prologue, no namespaces, own ids, the page's ink."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = body.replace(INK, "currentColor")
    said = f'<svg role="img" aria-label="{escape(words)}"'
    return Markup(body.replace("<svg", said, 1))  # noqa: S704 - matplotlib escapes every text it draws
