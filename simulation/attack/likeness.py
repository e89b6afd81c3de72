"""How much a reconstruction looks like an image: PSNR and SSIM after both are standardised.

The network standardises every image before anything else, so that brightness and contrast are in no
gradient: both are taken from the original when images are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Images = Float[Tensor, "image channel height width"]
WINDOW, SPREAD = 11, 1.5
"""Side in pixels and standard deviation of SSIM's Gaussian window (Wang et al. 2004, section III.C)."""


@dataclass(frozen=True)
class Likeness:
    """One image against the reconstruction that matches it best."""

    psnr: float
    """Peak signal-to-noise ratio in dB; the peak is the original's range."""
    ssim: float
    """Structural similarity, 1 for equal images (Wang et al. 2004, IEEE TIP 13)."""
    match: int
    """Which reconstruction."""


def standardise(images: Images) -> Images:
    """Return images with mean 0 and variance 1 in every channel."""
    centred = images - images.mean((-2, -1), keepdim=True)
    return centred / centred.square().mean((-2, -1), keepdim=True).add(1e-5).sqrt()


def liken(original: Float[Tensor, "channel height width"], found: Images) -> Likeness:
    """Return how like `original` the best of the images `found` is, best by PSNR."""
    truth = standardise(original[None])
    guesses = standardise(found)
    peak = truth.max() - truth.min()
    errors = (guesses - truth).square().mean((1, 2, 3))
    match = int(errors.argmin())
    psnr = 10 * torch.log10(peak**2 / errors[match].clamp(min=1e-12))
    return Likeness(float(psnr), _ssim(truth, guesses[match : match + 1], float(peak)), match)


def _ssim(left: Images, right: Images, peak: float) -> float:
    places = torch.arange(WINDOW) - WINDOW // 2
    bell = torch.exp(-(places**2) / (2 * SPREAD**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2

    def blur(images: Images) -> Images:
        channels = images.shape[1]
        return functional.conv2d(images, window.expand(channels, 1, WINDOW, WINDOW), groups=channels)

    mean_l, mean_r = blur(left), blur(right)
    var_l, var_r = blur(left**2) - mean_l**2, blur(right**2) - mean_r**2
    both = blur(left * right) - mean_l * mean_r
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    top = (2 * mean_l * mean_r + c1) * (2 * both + c2)
    return float((top / ((mean_l**2 + mean_r**2 + c1) * (var_l + var_r + c2))).mean())
