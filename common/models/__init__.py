"""Networks F(x) = A(B(x)): a backbone that makes features and an adapter that makes outputs."""

from __future__ import annotations

from common.models.network import BACKBONES, Network, build

__all__ = ["BACKBONES", "Network", "build"]
