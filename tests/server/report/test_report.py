"""The report and the terminal table: right numbers, honest marks, safe text, nothing from elsewhere."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from common.algorithms import ALGORITHMS as ALGORITHMS_WE_HAVE
from server.report import plots, rounds
from server.report.board import Board
from server.report.console import ResultTable, summary
from server.report.page import headline, write_report

ALGORITHMS = ("reptile", "local-only", "fedavg", "fedprox", "pooled")
METRICS = ("auroc", "accuracy", "balanced-accuracy", "ece", "brier", "log-loss")
SKILL = {"reptile": 0.03, "local-only": -0.12, "fedavg": 0.01, "fedprox": 0.015, "pooled": 0.035}
Results = dict[str, Any]


def synthesise(seed: int, sites: int = 5, shots: tuple[int, ...] = (0, 1, 5, 10)) -> Results:
    """Return a run as the simulator writes it: hard and easy hospitals, wins and losses, gaps."""
    generator = np.random.default_rng(seed)
    names = [f"site-{number}" for number in range(1, sites + 1)]
    ease = {name: generator.uniform(-0.1, 0.04) for name in names}
    keys = [(a, s, k) for a in ALGORITHMS for s in names for k in shots if (a, k) != ("local-only", 0)]
    keys = [key for key in keys if key[1:] != (names[-1], shots[-1])]
    rows = [_row(generator, key, metric, ease[key[1]]) for key in keys for metric in METRICS]
    auroc = {(r["algorithm"], r["site"], r["shot"]): r["mean"] for r in rows if r["metric"] == "auroc"}
    return {
        "format": 1,
        "version": "0.1.0",
        "seed": seed,
        "metric": "auroc",
        "task": {"label": "finding", "classes": ["normal", "nodule"]},
        "model": "conv4",
        "parameters": 28_160,
        "engine": "inprocess",
        "workers": 2,
        "command": "zamenis-simulate run --set training.rounds=30",
        "rows": rows,
        "differences": [_difference(generator, key, auroc) for key in keys if key[0] != "reptile"],
        "hurt": [
            dict(zip(("algorithm", "site", "shot"), key, strict=True))
            | {
                "share": float(generator.integers(0, 7)) / 20,
                "fell_back": float(generator.integers(0, 12)) / 20,
            }
            for key in keys
            if key[2] and key[0] != "local-only"
        ],
        "recipes": [
            dict(zip(("algorithm", "site", "shot"), key, strict=True))
            | {
                "scope": str(generator.choice(["adapter", "adapter", "all"])),
                "inner_lr": 0.05,
                "inner_steps": 20,
            }
            for key in keys
            if key[2]
        ],
        "rounds": [
            {
                "algorithm": a,
                "site": s,
                "round": r,
                "loss": 0.2 + 0.5 * float(np.exp(-r / 3)),
                "delta-norm": 1.0 / r,
                "seconds": 0.2,
            }
            for a in ("reptile", "fedavg", "fedprox")
            for s in names
            for r in range(1, 31)
        ],
        "left_out": [
            {"site": names[-1], "shot": shots[-1], "reason": "7 patients of class nodule; 10 needed"}
        ],
        "hospitals": [
            {
                "site": name,
                "least": 10,
                "refused": {"truncated": 10, "missing label": 30},
                "patients": [60, 50],
                "per_class": {"normal": [36, 38], "nodule": [24, None]},
            }
            for name in names
        ],
        "curves": [_curves(generator, name, shot) for shot in shots for name in ALGORITHMS],
        "timing": {"total_s": 80.1, "data_s": 6.0, "training_s": 30.0, "evaluation_s": 40.0},
    }


def _row(generator: np.random.Generator, key: tuple[str, str, int], metric: str, ease: float) -> Results:
    """Return one row; few patients cost an algorithm that learns from them alone the most."""
    algorithm, site, shot = key
    gain = 0.02 * np.log1p(shot) * (4 if algorithm == "local-only" else 1)
    score = float(np.clip(0.86 + SKILL[algorithm] + ease + gain + generator.normal(0, 0.01), 0.5, 0.995))
    mean = score if metric in METRICS[:3] else (1 - score) / 2
    half = 0.04 / (1 + shot / 4) * min(1.0, mean)
    return {
        "algorithm": algorithm,
        "site": site,
        "shot": shot,
        "metric": metric,
        "mean": mean,
        "ci_low": mean - half,
        "ci_high": min(1.0, mean + half),
        "draws": 20,
        "worst": mean - 2 * half if metric in METRICS[:3] else mean + 2 * half,
    }


def _curves(generator: np.random.Generator, algorithm: str, shot: int) -> Results:
    """Return both curves of an algorithm at one K."""
    fpr, stated = np.linspace(0, 1, 11), np.sort(generator.uniform(size=5))
    observed = np.clip(stated + generator.normal(0, 0.05, 5), 0.1, 0.9)
    columns = {"stated": stated, "observed": observed, "ci_low": observed - 0.1, "ci_high": observed + 0.1}
    reliability = [
        dict(zip(columns, map(float, one), strict=True)) for one in zip(*columns.values(), strict=True)
    ]
    return {
        "algorithm": algorithm,
        "shot": shot,
        "hospitals": 4,
        "roc": {"fpr": fpr.tolist(), "tpr": (fpr ** generator.uniform(0.1, 0.5)).tolist()},
        "reliability": [one | {"answers": 1234} for one in reliability],
    }


def _difference(
    generator: np.random.Generator, key: tuple[str, str, int], auroc: dict[Any, float]
) -> Results:
    algorithm, site, shot = key
    mean = auroc["reptile", site, shot] - auroc[key]
    half = float(generator.uniform(0.005, 0.03))
    where = {"algorithm": algorithm, "reference": "reptile", "site": site, "shot": shot, "metric": "auroc"}
    return where | {"mean": mean, "ci_low": mean - half, "ci_high": mean + half}


def page(results: Results, folder: Path) -> str:
    """Return the written report."""
    write_report(results, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def printed(*what: Any, width: int = 100) -> str:
    """Return what a pipe gets."""
    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True).print(*what)
    return stream.getvalue()


def cells(*rows: tuple[str, str, int, float], metric: str = "auroc") -> Results:
    """Return results that hold only these rows of one metric."""
    names = ("algorithm", "site", "shot", "mean")
    return synthesise(0, 2) | {
        "rows": [dict(zip(names, row, strict=True)) | {"metric": metric} for row in rows],
        "differences": [],
        "hurt": [],
    }


class Outline(HTMLParser):
    """What a browser would fetch, run, or fail to nest."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that opens, and whatever it names."""
        self.seen.append(tag)
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.targets += [
            value or "" for key, value in attrs if key in ("href", "src", "xlink:href", "aria-labelledby")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element without content."""
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Hold the page to closing what it opened last."""
        assert self.open.pop() == tag


def outline(text: str) -> Outline:
    """Return the parsed page; every element closes in the order it opened."""
    parsed = Outline()
    parsed.feed(text)
    assert not parsed.open
    return parsed


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of one realistic run."""
    return page(synthesise(1), tmp_path_factory.mktemp("run"))


def test_page_needs_nothing_but_itself(written: str) -> None:
    """No script, no address, no fetched file: every reference points into the page."""
    seen = outline(written)
    assert not {"script", "link", "img", "iframe", "image"} & set(seen.seen)
    assert "http" not in written
    assert "@import" not in written
    inside = {target.removeprefix("#") for target in seen.targets}
    assert inside <= set(seen.ids)
    assert re.findall(r"url\((?!#)", written) == []


def test_ids_are_unique(written: str) -> None:
    """Two figures in one page share no id, so neither borrows the other's clip paths."""
    ids = outline(written).ids
    assert sorted(ids) == sorted(set(ids))


def test_same_results_give_the_same_bytes(written: str, tmp_path: Path) -> None:
    """A report carries no date and no random id."""
    assert page(synthesise(1), tmp_path) == written


def test_every_number_of_the_headline_metric_is_in_the_page(written: str) -> None:
    """The table leaves no row out."""
    for row in synthesise(1)["rows"]:
        if row["metric"] == "auroc":
            assert f"{row['mean']:.3f}" in written


def test_words_for_the_ear_do_not_widen_a_page(written: str) -> None:
    """Words that no eye sees stand outside the flow, and must scroll with their table, not beside it."""
    style = dict(re.findall(r"^(\.[a-z]+) \{([^}]*)\}", written, re.MULTILINE))
    assert "position: absolute" in style[".aside"]
    assert "overflow-x: auto; position: relative" in style[".wide"]
    before = [text.rpartition('<div class="wide"')[2] for text in written.split('<span class="aside">')[:-1]]
    assert before
    assert not any("</div>" in text for text in before)


def test_curves_are_drawn_with_their_words_and_numbers(written: str) -> None:
    """A figure says what it shows to whom it is read out; a panel has its ECE, and each point its numbers."""
    results = synthesise(1)
    assert 'role="img" aria-label="ROC curves' in written
    assert 'role="img" aria-label="Reliability curves' in written
    assert "Of nodule. Each is the mean" in written
    ece = Board.of(results["rows"], "ece").mean("reptile", 5)
    assert ece is not None
    assert f">ECE {ece.value:.3f}<" in written
    for one in (one for curve in results["curves"] for one in curve["reliability"]):
        assert f"<td>{one['observed']:.3f} <small>[{one['ci_low']:.3f}, {one['ci_high']:.3f}]" in written
    assert written.count(">1,234<") == sum(len(curve["reliability"]) for curve in results["curves"])


def test_panels_keep_their_columns_where_an_algorithm_lacks_a_k(tmp_path: Path) -> None:
    """The first K has no local-only: the others' panels stand above their own, in the table's order."""
    results = synthesise(1, shots=(0, 1))
    lacks = ("local-only", 0)
    results["curves"] = [one for one in results["curves"] if (one["algorithm"], one["shot"]) != lacks]
    _, _, figure = page(results, tmp_path).partition('aria-label="Reliability')
    titles = re.findall(r'x="([\d.]+)"[^>]*>([a-z-]+), K = (\d)<', figure)
    places = {(name, int(shot)): float(x) for x, name, shot in titles}
    order = list(Board.of(results["rows"], "auroc").algorithms)
    assert [name for name, shot in places if shot == 1] == order
    assert {name for name, shot in places if shot == 0} == {*order} - {"local-only"}
    assert all(x == places[name, 1] for (name, _), x in places.items())


def test_results_without_curves_say_nothing_of_them(tmp_path: Path) -> None:
    """As a deployed run's, whose hospitals send metrics alone."""
    results = synthesise(1)
    del results["curves"]
    text = page(results, tmp_path)
    outline(text)
    assert not re.search("ROC|[Rr]eliability|points in numbers", text.replace("AUROC", ""))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """A hospital's, class's or reason's name cannot become markup, in the page, a figure or the terminal."""
    evil = "<script>alert(1)</script>[red]$x^2$ & \"'"
    results = synthesise(2, 2)
    for name in ("rows", "differences", "hurt", "recipes", "rounds", "left_out", "hospitals"):
        for row in results[name]:
            row["site"] = evil if row["site"] == "site-1" else row["site"]
    results["left_out"][0]["reason"] = evil
    results["task"] = {"label": evil, "classes": [evil, "nodule"]}
    results["command"] = evil
    text = page(results, tmp_path)
    assert "<script" not in text.lower()
    assert "script" not in outline(text).seen
    assert "<script>alert(1)</script>[red]$x^2$" in printed(summary(results, {}), width=200)


@pytest.mark.parametrize("kept", ["nothing", "one hospital", "no adaptation", "no intervals", "keys absent"])
def test_what_is_absent_is_said_not_broken(kept: str, tmp_path: Path) -> None:
    """Empty lists, one hospital, K = 0 alone, missing bounds and keys all give whole pages."""
    results = synthesise(
        3, 1 if kept == "one hospital" else 3, (0,) if kept == "no adaptation" else (0, 1, 5)
    )
    lists = [name for name, value in results.items() if isinstance(value, list)]
    if kept == "nothing":
        results |= {name: [] for name in lists}
    if kept == "keys absent":
        results = {
            k: v for k, v in results.items() if k not in {*lists, "timing", "parameters"} or k == "rows"
        }
    if kept == "no intervals":
        for row in [*results["rows"], *results["differences"], *results["hurt"]]:
            for bound in ("ci_low", "ci_high", "worst", "fell_back"):
                row.pop(bound, None)
    text = page(results, tmp_path)
    outline(text)
    assert "nan" not in text.lower().split()
    assert ("at a hospital never seen before" in text) == (kept != "nothing")
    assert printed(ResultTable(results), summary(results, {"report": tmp_path / "report.html"}))


def test_best_follows_the_metrics_direction() -> None:
    """The highest AUROC and the lowest calibration error are best."""
    rows = (("reptile", "a", 1, 0.8), ("fedavg", "a", 1, 0.6))
    for metric, winner in (("auroc", "reptile"), ("ece", "fedavg"), ("log-loss", "fedavg")):
        board = Board.of(cells(*rows, metric=metric)["rows"], metric)
        line = board.groups()[0].hospitals[0]
        assert [n for n, cell in zip(board.algorithms, line.cells, strict=True) if cell and cell.best] == [
            winner
        ]


def test_numbers_that_print_alike_share_the_mark() -> None:
    """0.9001 is not better than 0.9004 on a page of three decimals; 0.9006 is."""
    board = Board.of(cells(("reptile", "a", 1, 0.9001), ("fedavg", "a", 1, 0.9004))["rows"], "auroc")
    assert board.best({"reptile": 0.9001, "fedavg": 0.9004}) == {"reptile", "fedavg"}
    assert board.best({"reptile": 0.9001, "fedavg": 0.9006}) == {"fedavg"}


def test_lone_algorithm_gets_no_mark() -> None:
    """Being best needs somebody to be better than."""
    results = cells(("reptile", "a", 1, 0.9), ("reptile", "b", 1, 0.8))
    assert "*" not in printed(ResultTable(results)).replace("* best", "")


def test_means_compare_the_same_hospitals() -> None:
    """An algorithm does not gain a better mean by missing the hard hospital: b counts for nobody."""
    rows = (("reptile", "a", 1, 0.8), ("reptile", "b", 1, 0.4), ("fedavg", "a", 1, 0.7))
    board = Board.of(cells(*rows)["rows"], "auroc")
    reptile, fedavg = board.mean("reptile", 1), board.mean("fedavg", 1)
    assert reptile is not None
    assert fedavg is not None
    assert (reptile.value, fedavg.value) == (0.8, 0.7)
    assert board.groups()[0].mean.name == "mean 1/2"


def test_mean_and_worst_agree_with_the_rows() -> None:
    """On a complete run the mean is the rows' mean and the worst their minimum, named by its hospital."""
    results = synthesise(4, 6, (1, 5, 10))
    board = Board.of(results["rows"], "auroc")
    for name in ALGORITHMS:
        values = {
            row["site"]: row["mean"]
            for row in results["rows"]
            if (row["algorithm"], row["shot"], row["metric"]) == (name, 5, "auroc")
        }
        mean, worst = board.mean(name, 5), board.worst(name, 5)
        assert mean is not None
        assert worst is not None
        assert mean.value == pytest.approx(sum(values.values()) / len(values))
        assert (worst.value, worst.site) == (min(values.values()), min(values, key=values.__getitem__))


def test_headline_names_the_leader_and_the_margin() -> None:
    """Fedavg leads at K = 5 by 0.85 - 0.80 in the mean of two hospitals; the hero is not favoured."""
    rows = [
        ("reptile", "a", 5, 0.9),
        ("reptile", "b", 5, 0.7),
        ("fedavg", "a", 5, 0.8),
        ("fedavg", "b", 5, 0.9),
    ]
    lead, weakest = headline(cells(*rows))
    assert lead == "Best mean AUROC over held-out hospitals: fedavg at K = 5 (ahead by 0.050)."
    assert weakest == "Weakest hospital over K = 5: reptile 0.700 (b, K = 5), fedavg 0.800 (a, K = 5)."


def test_headline_says_first_what_was_not_learned() -> None:
    """A round that took no step has no delta's norm."""
    good, idle = {"round": 1, "delta-norm": 0.5}, {"round": 2}
    results = cells(("reptile", "a", 1, 0.9), ("fedavg", "a", 1, 0.8))
    assert headline(results | {"rounds": [good, idle]})[0].startswith("1 of 2 rounds had too few hospitals")
    assert headline(results | {"rounds": [idle, idle]})[0].startswith("Nothing was learned")
    assert headline(results | {"rounds": [good]}) == headline(results)


def test_a_hospital_left_out_of_a_whole_run_was_not_judged() -> None:
    """A run that held nobody out says so, whoever was too small for it, and names that one without a K."""
    small = {"site": "8", "shot": None, "reason": "All 6 patients are on the test side"}
    results = cells() | {"left_out": [small], "hospitals": [{}, {}]}
    assert headline(results)[0].startswith("Meta-trained over 2 hospitals; no hospital was held out")
    assert "Left out: 8: All 6 patients are on the test side." in printed(summary(results, {}), width=200)
    assert headline(results | {"left_out": [small | {"shot": 1}]})[0].startswith("Nothing could be measured")


def test_headline_tells_a_tie_and_the_yardstick() -> None:
    """Equal leaders are both named, and a lead of pooled is followed by the lead without it."""
    tie = headline(cells(("reptile", "a", 1, 0.9), ("fedavg", "a", 1, 0.9)))
    assert tie[0].endswith("reptile and fedavg at K = 1.")
    led = headline(cells(("pooled", "a", 1, 0.9), ("reptile", "a", 1, 0.8), ("fedavg", "a", 1, 0.7)))
    assert "pooled at K = 1 (ahead by 0.100)" in led[0]
    assert "reptile at K = 1 (ahead by 0.100)" in led[1]


def test_headline_counts_what_is_certain() -> None:
    """Only an interval wholly to one side of zero counts as better or worse."""
    results = cells(("reptile", "a", 1, 0.9), ("fedavg", "a", 1, 0.8))
    base = {"algorithm": "fedavg", "reference": "reptile", "shot": 1, "metric": "auroc", "mean": 0.0}
    bounds = {"a": (0.01, 0.2), "b": (-0.1, -0.01), "c": (-0.1, 0.1), "d": (0.0, 0.1)}
    results["differences"] = [
        base | {"site": site, "ci_low": low, "ci_high": high} for site, (low, high) in bounds.items()
    ]
    assert headline(results)[-1].endswith("against fedavg better in 1, worse in 1, undecided in 2.")


def test_table_fits_the_terminal_and_survives_a_pipe() -> None:
    """Five algorithms fit 80 columns uncut, and the best is marked without colour."""
    text = printed(ResultTable(synthesise(1)), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    assert re.search(r"0\.\d{3} ±\.\d{3}\*", text)


def test_algorithms_that_do_not_fit_follow_below() -> None:
    """Twelve on 80 columns: nothing is cut, and every part says its hospitals and K anew."""
    names = [f"algorithm-{number}" for number in range(12)]
    results = cells(*((name, "hospital-a", 1, 0.5 + number / 100) for number, name in enumerate(names)))
    text = printed(ResultTable(results), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(re.search(rf"{name}\b", text) for name in names)
    assert text.count("K  hospital") == text.count("1  hospital-a") == 3
    assert text.count("0.610*") == text.count("held-out") == text.count("best of the line") == 1


def test_terminal_stays_short_for_many_hospitals() -> None:
    """Forty hospitals give means and worst hospitals alone, and say where the others are."""
    text = printed(ResultTable(synthesise(5, 40)))
    assert len(text.splitlines()) < 30
    assert "all 40 hospitals are in the report" in " ".join(text.split())
    assert "site-7" not in text


def test_summary_tells_hurt_left_out_and_paths() -> None:
    """The end of a run says where adapting hurt, why something is missing and where the files lie."""
    results = synthesise(1)
    shares = [row["share"] for row in results["hurt"] if (row["algorithm"], row["shot"]) == ("reptile", 1)]
    text = printed(summary(results, {"report": Path("runs/1/report.html")}), width=300)
    assert (
        f"reptile: adapting hurt in {sum(shares) / len(shares):.0%}".replace("%", "\N{NO-BREAK SPACE}%")
        in text
    )
    assert "site-5 at K = 10: 7 patients of class nodule; 10 needed." in text
    assert "report  runs/1/report.html" in text


def test_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    """A report that cannot be written whole leaves nothing half written behind."""
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match="report"):
        write_report(synthesise(1, 2, (0,)), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("stroke", [*plots.STROKES.values(), plots.OTHER], ids=[*plots.STROKES, "other"])
def test_strokes_are_legible_on_light_and_dark(stroke: plots.Stroke) -> None:
    """Every colour keeps WCAG's 3:1 for graphics (1.4.11) against both of the page's backgrounds."""
    for background in ("#fdfdfb", "#15191c"):
        high, low = sorted((_luminance(stroke.colour), _luminance(background)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3


def test_no_two_algorithms_look_alike() -> None:
    """Without colour, dash and marker still tell every two algorithms apart."""
    assert plots.STROKES.keys() == ALGORITHMS_WE_HAVE.keys()
    strokes = [*plots.STROKES.values(), plots.OTHER]
    for feature in ("colour", "dash", "marker"):
        assert len({getattr(stroke, feature) for stroke in strokes}) == len(strokes)


@pytest.mark.parametrize("count", [1, 2, 5, 13, 40])
def test_curves_stand_beside_their_k_within_the_panel(count: int) -> None:
    """However many there are, apart and about it; a few stand as far apart as reads well."""
    places = [plots.aside(number, count) for number in range(count)]
    assert sum(places) == pytest.approx(0)
    assert len(set(places)) == count
    assert max(places) < plots.AROUND
    assert count > 5 or np.diff(places) == pytest.approx(0.06)


def _luminance(colour: str) -> float:
    """Return WCAG's relative luminance of `#rrggbb`."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_run_that_held_nobody_out_says_so_and_shows_no_empty_sections(tmp_path: Path) -> None:
    """No claim about new hospitals, no section without content; the date, and how the model is taken out."""
    judged = ("rows", "differences", "hurt", "recipes", "left_out", "curves")
    results = synthesise(1) | dict.fromkeys(judged, ())
    results |= {"date": "2026-11-26", "export": "zamenis-coordinator export run-001 phi.safetensors"}
    text = page(results, tmp_path)
    assert "Finding, learned by 5 hospitals together" in text
    assert "2026-11-26" in text
    assert "zamenis-coordinator export run-001 phi.safetensors" in text
    for claim in ("never seen before", "new hospital", "held-out hospital met", "was measured at every K"):
        assert claim not in text
    assert {"hospitals", "training", "use", "reproduce"} == set(re.findall(r'<h2 id="([a-z-]+)"', text))
    assert set(re.findall(r'href="#([a-z-]+)"', text)) == set(re.findall(r'<h2 id="([a-z-]+)"', text))


def told(*losses: float, site: str = "nobody", **more: Any) -> list[Results]:
    """Return the rounds of a training with these losses."""
    return [
        {"algorithm": "reptile", "site": site, "round": number, "loss": loss, "sites": 3, "delta-norm": 1.0}
        | more
        for number, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize(
    ("losses", "falling"),
    [
        ([1.0 - 0.02 * number for number in range(20)], True),
        ([0.5 + 0.01 * (-1) ** number for number in range(20)], False),
        ([0.5] * 20, False),
        ([0.4 + 0.02 * number for number in range(20)], False),
        ([1.0, 0.8, 0.6, 0.4], False),
        ([0.0] * 20, False),
    ],
)
def test_a_loss_that_still_falls_is_told(losses: list[float], falling: bool) -> None:
    """Only one that falls by more than it varies, and over enough rounds to tell."""
    said = rounds.unfinished(told(*losses))
    assert bool(said) == falling
    if falling:
        assert said == [
            "The loss of reptile was still falling when the rounds were over, by 13% within the last 10: "
            "more may help."
        ]
        assert said[0] in headline(synthesise(1) | {"rounds": told(*losses)})


def test_who_was_missing_is_told_round_by_round(tmp_path: Path) -> None:
    """Rounds alike are one line; a training without a hospital is another training."""
    away = {"st-bern": "its node is not connected"}
    some = [
        *told(0.5),
        *({**one, "round": number, "sites": 2, "missing": away} for number in (2, 3) for one in told(0.5)),
        *({**one, "round": 4, "missing": {}} for one in told(0.5)),
        *told(0.5, site="st-anna", sites=0, missing={"st-bern": "did not answer in time"}),
    ]
    lines = [(one.training, one.rounds, one.took_part, dict(one.missing)) for one in rounds.absences(some)]
    assert lines == [
        ("reptile", "2 to 3", 2, away),
        ("reptile without st-anna", "1", 0, {"st-bern": "did not answer in time"}),
    ]
    text = page(synthesise(1) | {"rounds": some}, tmp_path)
    assert "st-bern: its node is not connected" in text
    assert "participation" not in page(synthesise(1), tmp_path)


def test_a_class_that_is_a_bare_number_goes_with_its_label(tmp_path: Path) -> None:
    """The table of a heart disease with classes 0 and 1 reads `disease 0`, `disease 1`."""
    text = page(synthesise(1) | {"task": {"label": "disease", "classes": ["0", "1"]}}, tmp_path)
    assert "disease 0 and disease 1" in text
