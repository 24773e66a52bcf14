"""One line from the many events of a pull."""

from __future__ import annotations

from typing import Any

import pytest

from app.engines.pull_progress import PullProgress

MIB = 1024 * 1024


def event(status: str, layer: str | None = None, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"status": status, "progressDetail": detail} | ({"id": layer} if layer else {})


@pytest.fixture
def progress() -> PullProgress:
    return PullProgress(interval_s=0)


def test_layers_and_bytes_are_summed_up(progress: PullProgress) -> None:
    assert progress.take(event("Pulling from acme/shot", "1")) is None
    assert progress.take(event("Already exists", "a")) == "1 of 1 layers"
    assert progress.take(event("Pulling fs layer", "b")) == "1 of 2 layers"
    assert progress.take(event("Downloading", "b", MIB, 4 * MIB)) == "1 of 2 layers, 1.0 of 4.0 MiB"
    assert progress.take(event("Downloading", "c", MIB, 2 * MIB)) == "1 of 3 layers, 2.0 of 6.0 MiB"
    assert progress.take(event("Extracting", "b", 99, 100)) == "1 of 3 layers, 2.0 of 6.0 MiB"
    assert progress.take(event("Pull complete", "b")) == "2 of 3 layers, 5.0 of 6.0 MiB"
    assert progress.take(event("Digest: sha256:d1")) is None


def test_a_flood_of_events_gives_few_lines() -> None:
    progress = PullProgress(interval_s=3600)
    lines = [progress.take(event("Downloading", "a", done, 1000)) for done in range(1000)]
    assert [line for line in lines if line] == ["0 of 1 layers, 0.0 of 0.0 MiB"]
