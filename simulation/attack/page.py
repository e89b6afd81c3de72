"""The attack's page, self-contained and in the report's look, and a short table for the terminal."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from common.files import write_text
from server.report.page import environment
from simulation.attack.likeness import liken, standardise
from simulation.attack.membership import Leak, by_view
from simulation.attack.reconstruct import Reconstruction

HELD = {
    "plain": "its plain delta",
    "masked": "its masked vector",
    "sum": "the cohort's sum",
    "chance": "its masked vector, best of as many guesses as the sum has images",
    "baseline": "nothing: the mean of the attacker's own images",
    "phi": "the weights alone",
}
"""What the coordinator holds, by view."""
FIRST_GUESS = "the attacker's first guess"


def write_page(found: Mapping[str, Any], images: Reconstruction, path: Path) -> None:
    """Write attack.html; it loads nothing and runs nothing."""
    page = environment("simulation.attack").get_template("attack.html.j2")
    leaks = by_view([Leak(**leak) for leak in found["membership"]])
    write_text(path, page.render(run=found, held=HELD, leaks=leaks, figure=_figure(images)))


def result_table(found: Mapping[str, Any]) -> Table:
    """Return what each thing that a coordinator may hold gives away."""
    table = Table(
        title="What a curious coordinator gets of one hospital",
        caption="chance: SSIM as from nothing, AUROC 0.5",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("from", "image PSNR", "SSIM", "member? AUROC by loss", "by alignment"):
        table.add_column(name)
    leaks = by_view([Leak(**leak) for leak in found["membership"]])
    views = found["reconstruction"]["views"]
    for view in ("plain", "masked", "sum", "phi", "baseline"):
        seen, told = views.get(view), leaks.get(view, {})
        table.add_row(
            HELD[view],
            f"{seen['psnr']:.1f} dB" if seen else "-",
            f"{seen['ssim']:.2f}" if seen else "-",
            *(_auroc(told.get(score)) for score in ("loss", "alignment")),
        )
    return table


def _auroc(leak: Leak | None) -> str:
    return f"{leak.auroc:.3f} [{leak.low:.3f}, {leak.high:.3f}]" if leak else "-"


def _figure(images: Reconstruction) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return per victim its pictures: what it is, its numbers, and the picture as a data URI."""
    rows = []
    for place, (site, original) in enumerate(images.originals.items()):
        truth = standardise(original)[0]
        low, high = float(truth.min()), float(truth.max())
        pictures = [("the hospital's image", "", _png(truth, low, high))]
        for view in ("plain", "masked", "sum"):
            one = images.views[view][place]
            likeness = one.likeness[0]
            numbers = f"{likeness.psnr:.1f} dB, SSIM {likeness.ssim:.2f}"
            pictures.append((f"from {HELD[view]}", numbers, _png(one.images[likeness.match], low, high)))
        guess = liken(original[0], images.baseline)
        numbers = f"{guess.psnr:.1f} dB, SSIM {guess.ssim:.2f}"
        pictures.append((FIRST_GUESS, numbers, _png(standardise(images.baseline)[0], low, high)))
        rows.append((site, pictures))
    return rows


def _png(image: Float[Tensor, "channel height width"], low: float, high: float) -> str:
    """Return a standardised image as a PNG in a data URI, `low` black and `high` white."""
    grey = ((image.mean(0) - low) / (high - low)).clamp(0, 1) * 255
    stream = io.BytesIO()
    Image.fromarray(np.asarray(grey.round().to(torch.uint8))).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
