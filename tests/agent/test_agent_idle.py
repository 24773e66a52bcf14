"""What a sandbox costs that does nothing: there may be hundreds of them on a machine."""

import subprocess
import sys
import time

import psutil

from tests.agent.running_agent import PACKAGE_DIRECTORY, RunningAgent

NOT_NEEDED_AT_THE_START = {
    "click",
    "logging.config",
    "mimetypes",
    "multiprocessing",
    "pydantic",
    "python_multipart",
    "sandgate_agent.volume",
}

WATCHED_S = 1.0


def test_the_agent_sleeps_until_somebody_calls(fresh_agent: RunningAgent) -> None:
    fresh_agent.initialise()
    fresh_agent.sandbox().commands.run("true")
    process = psutil.Process(fresh_agent.process.pid)

    def wakes() -> int:
        """Of the main thread, where the event loop is, in a while."""
        before = process.num_ctx_switches().voluntary
        time.sleep(WATCHED_S)
        return process.num_ctx_switches().voluntary - before

    # uvicorn's own clock alone would wake it ten times in each of them.
    assert any(wakes() < 5 for _ in range(5))


def test_the_agent_starts_without_what_only_some_calls_need() -> None:
    program = "import sys, sandgate_agent.__main__; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(PACKAGE_DIRECTORY)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert NOT_NEEDED_AT_THE_START & set(loaded.stdout.split()) == set()
