"""Work of the server that goes on until it ends."""

from __future__ import annotations

from structlog.testing import capture_logs

from app.main import _in_background
from tests.waiting import until


async def test_work_that_ends_too_early_is_logged() -> None:
    async def fails() -> None:
        raise RuntimeError("nobody thought of it")

    with capture_logs() as logs:
        async with _in_background(fails(), "metrics"):
            await until(lambda: logs)
    (line,) = logs
    assert (line["event"], line["task"], line["log_level"]) == ("background_task_ended", "metrics", "error")
    assert str(line["exc_info"]) == "nobody thought of it"
