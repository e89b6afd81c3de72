"""Example masks for a simulated run's report: pixels of test patients, so never part of a real federation's.

The first federated algorithm's phi, trained without the hospital, adapted to the first draw of its largest
K, on the first of its test images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.few_shot import Question
from client.part import Part
from client.site import Node, NodeConfig, hospital_of
from common import weights, wire
from common.cases import Cases
from common.config import Config
from server.experiment.conduct import Outcome
from server.experiment.plan import Cell, Plan
from server.report.page import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 4
"""Images of each hospital."""
TRUTH, OURS = "#ffd60a", "#3fb6ff"
"""Told apart by the colour-blind, and readable on most images."""
INCHES = 2.4


def example_masks(config: Config, outcome: Outcome, nodes: Sequence[NodeConfig]) -> list[Picture]:
    """Return a picture per held-out hospital: its test images with the true and the predicted outlines."""
    plan = Plan(config, sorted(outcome.hospitals))
    name, shot = plan.headliner, max(config.experiment.shots, default=0)
    if name is None:
        return []
    verdicts = plan.verdicts(outcome.recipes)
    found = []
    for node in nodes:
        site = str(node["site"])
        cell = Cell(name, site, shot)
        if cell not in verdicts or outcome.answers[cell].left_out:
            continue
        trial = verdicts[cell]
        assert trial.training is not None  # noqa: S101 - a federated algorithm's phi was trained
        part = Part(Node.of(node), hospital_of(Node.of(node), config.to_json()), config, name)
        phi = weights.unpack(outcome.trained[trial.training].phi, part.like())
        question = Question(shot=shot, recipe=trial.recipe, draws=1, replicates=0, purpose=wire.TEST)
        logits = part.judge(phi).predict(question, draw=0).logits
        masks = config.kind.predictions(logits[:SHOWN])
        words = (
            f"{site}: {name} adapted to {shot} patients. Yellow: the true outline; blue, dashed: the "
            "predicted one."
        )
        found.append(Picture(words, _drawn(part.hospital.test, masks)))
    return found


def _drawn(test: Cases, masks: Tensor) -> bytes:
    """Return a PNG of test images side by side with both outlines."""
    from matplotlib.figure import Figure  # as in server.report.plots: it takes a second

    count = len(masks)
    figure = Figure(figsize=(INCHES * count, INCHES), dpi=110)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for place, panel in enumerate(axes):
        _draw(panel, test.inputs[place], test.labels[place], masks[place])
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.03)
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True, metadata={"Software": None})
    return file.getvalue()


def _draw(panel: Axes, image: Tensor, truth: Tensor, mask: Tensor) -> None:
    panel.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy(), vmin=0, vmax=1, interpolation="nearest")
    for outline, colour, style in ((truth, TRUTH, "solid"), (mask, OURS, "dashed")):
        for one in torch.unique(outline.long())[1:]:
            here = (outline == one).float().numpy()
            panel.contour(here, levels=[0.5], colors=[colour], linewidths=1.1, linestyles=style)
    panel.set_axis_off()
