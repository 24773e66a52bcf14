"""How far a pull is, in one line, from the events of the engine's answer (`POST /images/create`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

_THERE = ("Pull complete", "Already exists")
_MIB = 1024 * 1024


class PullProgress:
    def __init__(self, *, interval_s: float = 1.0) -> None:
        self._interval_s = interval_s
        self._layers: dict[str, bool] = {}
        """Layer -> whether it is there."""
        self._bytes: dict[str, tuple[int, int]] = {}
        """Layer -> how much of it has come, and its size."""
        self._told_at = -float("inf")

    def take(self, event: Mapping[str, Any]) -> str | None:
        """The line after this event, unless one was given less than the interval ago."""
        layer, status = event.get("id"), str(event.get("status", ""))
        if layer is None or status.startswith("Pulling from"):
            return None
        self._layers[layer] = status in _THERE
        detail = event.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._bytes[layer] = (detail["current"], detail["total"])
        elif status in (*_THERE, "Download complete") and layer in self._bytes:
            total = self._bytes[layer][1]
            self._bytes[layer] = (total, total)
        if time.monotonic() < self._told_at + self._interval_s:
            return None
        self._told_at = time.monotonic()
        return self._line()

    def _line(self) -> str:
        layers = f"{sum(self._layers.values())} of {len(self._layers)} layers"
        if not self._bytes:
            return layers
        come, size = (sum(column) / _MIB for column in zip(*self._bytes.values(), strict=True))
        return f"{layers}, {come:.1f} of {size:.1f} MiB"
