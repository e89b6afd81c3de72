"""Whose classes a network's outputs stand for: which head crosses, which stays at home, which is phi's own.

A head with an output per class means something only where everybody has the same classes. So a head
crosses the wire if `head = "shared"`, as part of phi: over the run's classes by name, or over the
`way` places of re-labelled episodes, which mean nothing by themselves. With `head = "home"` it never
leaves its hospital: it begins at zero in every episode and is learned there (arXiv 2106.15367 has why
zero). A phi whose head was made for other classes than a hospital is judged on gets one of zeros too.
"""

from __future__ import annotations

from common.algorithms import ALGORITHMS
from common.config import Config


def seen(config: Config) -> tuple[str, ...]:
    """Return the classes that are meta-trained on."""
    unseen = config.experiment.unseen_classes
    return tuple(name for name in config.task.targets if name not in unseen)


def judged(config: Config) -> tuple[str, ...]:
    """Return the classes that hospitals are judged on, as far as they have them."""
    chosen = (*config.experiment.unseen_classes, *config.experiment.known_classes)
    return tuple(name for name in config.task.targets if not chosen or name in chosen)


def by_name(config: Config) -> bool:
    """Return whether every hospital is judged on the very classes that are meta-trained on."""
    settings = config.experiment
    return not (settings.unseen_classes or settings.way or config.task.own_classes)


def outputs(config: Config, algorithm: str) -> int:
    """Return how many classes a shared head tells apart."""
    return config.training_of(algorithm).way or len(seen(config))


def keeps_head(config: Config, algorithm: str, classes: int) -> bool:
    """Return whether a task of so many classes is answered with phi's own adapter, not with a fresh head."""
    training = config.training_of(algorithm)
    if ALGORITHMS[algorithm].adapter is not None:
        return True
    if training.head == "home":
        return False
    return training.way == classes if training.way else by_name(config)


def predicts_unadapted(config: Config, algorithm: str) -> bool:
    """Return whether phi has an answer at K = 0: its own head, over classes by name."""
    training = config.training_of(algorithm)
    own = ALGORITHMS[algorithm].adapter is None and training.head == "shared" and not training.way
    return own and by_name(config)
