"""Local only: the hospital trains from scratch on its own K cases; what joining a federation must beat.

Its steps and learning rate are tuned on the other hospitals, exactly as everybody's are.
"""

from __future__ import annotations

from common.algorithms.algorithm import Algorithm

local_only = Algorithm(name="local-only", paper="baseline", local_update=None)
