"""Every network: its state, seed and features, what it refuses, and that outer gradients pass through."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from common import weights
from common.algorithms.maml import outer_gradient
from common.cases import Cases, Episode
from common.config import load
from common.errors import ConfigError
from common.learner import Learner
from common.models import BACKBONES, Network, build
from common.models.norms import BatchNorm, GroupNorm
from common.models.statistics import fix_statistics
from common.sections import Model, Task
from common.seeds import Draws
from common.tasks import kind_of
from common.weights import Weights

ROOT = Path(__file__).resolve().parents[2]
IMAGES = [name for name, backbone in BACKBONES.items() if backbone.images]
TABLES = [name for name in BACKBONES if name not in IMAGES]
NORMS = ("group", "batch")
INNER = ("training.inner-optimizer=sgd", "training.inner-lr=0.001", "training.inner-steps=2")
SMALLEST = {
    ("conv4", "group"): 16,
    ("conv4", "batch"): 16,
    ("resnet18", "group"): 32,
    ("resnet18", "batch"): 64,
    ("densenet121", "group"): 32,
    ("densenet121", "batch"): 64,
    ("unet", "group"): 16,
    ("unet", "batch"): 16,
}
"""Pixels that an image needs."""


def network(name: str, norm: str = "group", *, side: int = 0, channels: int = 1, seed: int = 0) -> Network:
    """Return a small network of three outputs per image, its maps averaged, or of six-feature rows."""
    side = side or SMALLEST.get((name, norm), 0)
    shape = (channels, side, side) if name in IMAGES else (6,)

    def adapter(features: int) -> nn.Module:
        if not BACKBONES[name].maps:
            return nn.Linear(features, 3)
        return nn.Sequential(nn.Conv2d(features, 3, kernel_size=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    return build(Model(name=name, norm=norm, width=4), shape, adapter, seed=seed)  # type: ignore[arg-type]


def images(count: int, side: int, channels: int = 1) -> torch.Tensor:
    """Return random images in float64."""
    chance = torch.Generator().manual_seed(count)
    return torch.randn(count, channels, side, side, generator=chance, dtype=torch.float64)


def test_every_network_that_a_configuration_may_name_can_be_built() -> None:
    """The configuration's names are the table's."""
    assert get_args(Model.model_fields["name"].annotation) == tuple(BACKBONES)


@pytest.mark.parametrize(("name", "norm"), list(product(BACKBONES, NORMS)))
def test_the_state_of_a_network_is_its_parameters_alone(name: str, norm: str) -> None:
    """No running statistics, no counters, nothing that is no float; and forward passes add nothing."""
    found = network(name, norm)
    reads = images(2, SMALLEST[name, norm]).float() if name in IMAGES else torch.zeros(2, 6)
    found(reads)
    assert list(found.state_dict()) == [key for key, _ in found.named_parameters()]
    assert not list(found.buffers())
    assert all(value.dtype == torch.float32 for value in found.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_seed_decides_the_weights(name: str) -> None:
    """The same twice, others for another seed, and the global generator is left as it was."""
    before = torch.get_rng_state()
    first, again, other = (weights.pack(dict(network(name, seed=seed).state_dict())) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "norm"), SMALLEST)
@pytest.mark.parametrize("channels", [1, 3])
def test_features_have_the_promised_shape(name: str, norm: str, channels: int) -> None:
    """Of the smallest image and of one half as large again; a map's height and width are the image's."""
    for side in (SMALLEST[name, norm], SMALLEST[name, norm] * 3 // 2):
        told: list[int] = []

        def adapter(features: int, told: list[int] = told) -> nn.Module:
            told.append(features)
            return nn.Identity()

        model = Model(name=name, norm=norm, width=4)  # type: ignore[arg-type]
        found = build(model, (channels, side, side), adapter, seed=0)
        (features,) = told
        made = found(images(2, side, channels).float())
        assert made.shape == ((2, features, side, side) if BACKBONES[name].maps else (2, features))


@pytest.mark.parametrize(
    ("name", "published", "features"), [("resnet18", 11_689_512, 512), ("densenet121", 7_978_856, 1024)]
)
def test_a_network_is_the_published_one(name: str, published: int, features: int) -> None:
    """Torchvision's count, less its 1000 outputs; both begin with 64 filters of 7 x 7 x 3 channels."""
    found = network(name, channels=3).backbone
    assert sum(value.numel() for value in found.parameters()) == published - 1000 * (features + 1)
    assert next(found.parameters()).shape == (64, 3, 7, 7)


@pytest.mark.parametrize(("name", "norm"), SMALLEST)
def test_normalisation_is_the_configured_one(name: str, norm: str) -> None:
    """A case is predicted by itself under group normalisation, by its batch under batch normalisation."""
    found, asked = network(name, norm).double(), images(5, SMALLEST[name, norm])
    kind, other = (GroupNorm, BatchNorm) if norm == "group" else (BatchNorm, GroupNorm)
    kinds = [type(module) for module in found.modules()]
    assert kind in kinds
    assert other not in kinds
    alone = found(asked[:1])
    assert torch.allclose(found(asked)[:1], alone) == (norm == "group")


@pytest.mark.parametrize("name", IMAGES)
def test_gain_and_offset_of_a_scanner_change_nothing(name: str) -> None:
    """Every image is standardised first; the constant beside its variance is 1e-5."""
    found, asked = network(name).double(), images(2, SMALLEST[name, "group"])
    torch.testing.assert_close(found(700 * asked - 300), found(asked), rtol=1e-3, atol=1e-3)


def test_fixed_statistics_are_those_of_the_given_images() -> None:
    """ResNet-18 with `normalisation = recompute`: on these images as by their own, then each by itself."""
    found, reference = network("resnet18", "batch").double(), images(9, 64)
    own = found(reference)
    fix_statistics(found, [reference])
    found.double()  # they are kept in float32
    torch.testing.assert_close(found(reference), own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found(reference[:1]), found(reference)[:1])


@pytest.mark.parametrize(("name", "norm"), SMALLEST)
def test_an_outer_gradient_passes_through(name: str, norm: str) -> None:
    """MAML's gradient against central differences, along what the second order adds to the first.

    With d the difference of both gradients and v = d / |d|, the derivative of the query loss after the inner
    loop along v is g . v at second order, and |d| less at first order. The step is short, since a deep
    network of ReLUs has a kink close by in every direction.
    """
    side, step = SMALLEST[name, norm], 1e-8
    learner = Learner(network(name, norm).double(), kind_of(Task()), torch.device("cpu"))
    labels = torch.arange(3)
    support, query = (Cases(images(count, side)[:3], labels, labels) for count in (3, 6))
    episode, phi = Episode(support, query), learner.weights()

    def outer(at: Weights, order: str) -> tuple[Weights, float]:
        over = [*INNER, f"algorithms.maml.first-order={order}"]
        return outer_gradient(
            learner, at, episode, load(None, over).training_of("maml"), Draws.of_seed(0), {}
        )

    (second, _), (first, _) = outer(phi, "false"), outer(phi, "true")
    difference = weights.subtract(second, first)
    length = float(weights.pack(difference).norm())
    ahead, behind = (
        outer(weights.add(phi, difference, scale=move / length), "true")[1] for move in (step, -step)
    )
    slope = float(weights.pack(second) @ weights.pack(difference)) / length
    assert length > 1e-4
    assert (ahead - behind) / (2 * step) == pytest.approx(slope, abs=1e-3 * length)


@pytest.mark.parametrize(("name", "norm"), SMALLEST)
def test_an_image_that_is_too_small_is_refused(name: str, norm: str) -> None:
    """The smallest takes a batch of one case; eight pixels less are one message, which says what fits."""
    side = SMALLEST[name, norm]
    assert network(name, norm, side=side)(images(1, side).float()).isfinite().all()
    with pytest.raises(ConfigError, match=rf"data.image-size {side - 8} .* {name}.* at least {side}"):
        network(name, norm, side=side - 8)


def test_an_image_that_a_unet_cannot_halve_is_refused() -> None:
    """Three halvings and back need a multiple of eight."""
    with pytest.raises(ConfigError, match=r"data.image-size 36 .* use a multiple of 8"):
        network("unet", side=36)


@pytest.mark.parametrize("name", BACKBONES)
def test_images_and_tables_need_their_own_networks(name: str) -> None:
    """The message names every network that fits."""
    shape, fitting = ((6,), TABLES) if name in IMAGES else ((1, 64, 64), IMAGES)
    with pytest.raises(ConfigError, match=f"{name} cannot read .*; use {' or '.join(fitting)}"):
        build(Model(name=name), shape, nn.Identity, seed=0)  # type: ignore[arg-type]


def test_a_map_is_no_answer_about_an_image() -> None:
    """Classification asks about images as a whole."""
    with pytest.raises(ConfigError, match=r"model.name unet does not go with .* use conv4 or resnet18 or"):
        load(None, ["model.name=unet"])


def test_who_builds_no_network_of_monai_does_not_import_it() -> None:
    """It takes seconds."""
    code = "import sys, common.initialise, client.app, server.app; print('monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
