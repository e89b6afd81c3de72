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
}
"""Okabe and Ito's colour-blind-safe hues, each at least 3:1 against the light and the dark page."""
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
LEGEND = 6.8
"""Inches that a legend of six algorithms takes."""


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
        axes.set_xlim(-0.35, len(shots) - 0.65)
        for number, name in enumerate(algorithms):
            mine = sorted(
                (row for row in measured if row["site"] == site and row["algorithm"] == name),
                key=lambda row: int(row["shot"]),
            )
            aside = 0.06 * (number - (len(algorithms) - 1) / 2)
            _curve(axes, name, [shots.index(row["shot"]) + aside for row in mine], mine)

    words = (
        f"{labels[1]} against K for each held-out hospital, one curve per algorithm; numbers in the table "
        "below."
    )
    svg = _multiples("curves", sites, draw, labels, algorithms)
    return _inline(svg, "curves", words)


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
) -> str:
    """Return an SVG of one panel per title, all on the same axes; `name` seeds its ids."""
    import matplotlib as mpl

    with mpl.rc_context({**RC, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # names stay text, which the page's reader has a font for
        figure, panels = _panels(len(titles), legend)
        for axes, title in zip(panels, titles, strict=True):
            draw(axes, title)
            axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        figure.supxlabel(labels[0], fontsize=9, y=0.06 / figure.get_figheight())
        figure.supylabel(labels[1], fontsize=9, x=0.12 / figure.get_figwidth())
        drawn = io.StringIO()
        undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=undated)
    return drawn.getvalue()


def _panels(count: int, legend: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` empty panels, filled row by row, and the legend above them."""
    from matplotlib.figure import Figure

    columns = count if count <= 3 else 3 if count in (5, 6, 9) else 4
    rows = math.ceil(count / columns)
    width = max(columns * min(PANEL[0], (WIDTH - 0.5) / columns) + 0.5, LEGEND if legend else 0.0)
    top = 0.55 if legend else 0.25
    height = rows * PANEL[1] + top + 0.25
    figure = Figure(figsize=(width, height))
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    # The lowest visible panel of every column shows the axis, also above an empty corner.
    for axes in grid[count - columns : count]:
        axes.tick_params(labelbottom=True)
    _legend(figure, legend)
    figure.subplots_adjust(
        left=0.72 / width,
        right=1 - 0.08 / width,
        bottom=0.5 / height,
        top=1 - top / height,
        wspace=0.1,
        hspace=0.32,
    )
    return figure, grid[:count]


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
            handles, algorithms, loc="upper left", ncols=len(handles), handlelength=3.2, borderaxespad=0
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
