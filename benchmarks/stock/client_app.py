"""The installed ClientApp: on plain Flower a hospital computes exactly what it does on our node."""

from client.app import app

__all__ = ["app"]
