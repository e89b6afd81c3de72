"""How much an attack computes; the configuration says on what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the attack; the defaults take about two minutes on the demonstration's hospitals."""

    victims: int = 3
    """Hospitals whose images are reconstructed; the whole cohort takes part in every sum."""
    sights: int = 8
    """Deltas of the same images that the coordinator has seen, each from other initial weights."""
    batch: int = 4
    """Images of the largest batch that is tried."""
    iterations: int = 120
    directions: int = 100
    """Principal directions of the prior."""
    replicates: int = 1000
    """Bootstrap replicates behind every 95 % interval."""
