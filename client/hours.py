"""The hours in which a hospital's node works, such as `18:00-06:00`, by this machine's own clock."""

from __future__ import annotations

from datetime import time


def opens(hours: str, now: time) -> bool:
    """Return whether `now` lies within `hours` (checked by `client.home`); empty: always."""
    if not hours:
        return True
    begin, end = (time.fromisoformat(part) for part in hours.split("-"))
    return begin <= now < end if begin <= end else now >= begin or now < end
