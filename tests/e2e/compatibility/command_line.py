"""What a user does at a terminal with `e2b`, the command of E2B's own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.installation import wait_until


@dataclass(frozen=True)
class E2b:
    """The command, as a user with this environment has it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path

    def try_to_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """Its output; it must succeed."""
        done = self.try_to_run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--format", "json"))

    def sandboxes(self, *arguments: str) -> dict[str, Any]:
        return {sandbox["sandboxId"]: sandbox for sandbox in self.json("sandbox", "list", *arguments)}

    @contextmanager
    def sandbox(self) -> Iterator[str]:
        """Id of one that exists meanwhile."""
        sandbox_id = self.run("sandbox", "create", "--detach", "base").split()[-1]
        try:
            yield sandbox_id
        finally:
            self.try_to_run("sandbox", "kill", sandbox_id)


def create(e2b: E2b) -> None:
    with e2b.sandbox() as sandbox_id:
        assert e2b.sandboxes()[sandbox_id]["state"] == "running"
        assert sandbox_id in e2b.run("sandbox", "info", sandbox_id)
        assert "has been killed" in e2b.run("sandbox", "kill", sandbox_id)
        assert sandbox_id not in e2b.sandboxes()


def execute(e2b: E2b) -> None:
    with e2b.sandbox() as sandbox_id:
        done = e2b.try_to_run(
            "sandbox", "exec", "-u", "root", "-e", "A=b", sandbox_id, "echo $A; whoami; echo oh >&2; exit 3"
        )
        # What the command line adds on stderr is its own.
        assert (done.stdout, done.stderr.splitlines()[0], done.returncode) == ("b\nroot\n", "oh", 3), done


def connect(e2b: E2b) -> None:
    with e2b.sandbox() as sandbox_id:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*e2b.command, "sandbox", "connect", sandbox_id],
            env=e2b.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            read_until(ours, b"$ ")
            os.write(ours, b"echo answer=$((6*7))\n")
            read_until(ours, b"answer=42")
            os.write(ours, b"exit\n")
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(ours)


def read_until(terminal: int, wanted: bytes, within_s: float = 60) -> None:
    seen, deadline = b"", time.monotonic() + within_s
    while wanted not in seen:
        readable, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert readable, seen
        seen += os.read(terminal, 65536)


def logs(e2b: E2b) -> None:
    with e2b.sandbox() as sandbox_id:
        assert "Created from template base" in e2b.run("sandbox", "logs", sandbox_id)

        def metrics() -> str:
            return e2b.run("sandbox", "metrics", sandbox_id, "--format", "json")

        wait_until(lambda: '"memTotal"' in metrics(), metrics)


def pause(e2b: E2b) -> None:
    with e2b.sandbox() as sandbox_id:
        e2b.run("sandbox", "pause", sandbox_id)
        assert sandbox_id in e2b.sandboxes("--state", "paused")
        e2b.run("sandbox", "resume", sandbox_id)
        assert sandbox_id in e2b.sandboxes()


def snapshot(e2b: E2b) -> None:
    name = f"kept-{uuid.uuid4().hex[:12]}"
    with e2b.sandbox() as sandbox_id:
        e2b.run("sandbox", "snapshot", "create", "--name", name, sandbox_id)
        assert name in e2b.run("sandbox", "snapshot", "list", sandbox_id)
        e2b.run("sandbox", "snapshot", "delete", name)
        assert name not in e2b.run("sandbox", "snapshot", "list", sandbox_id)


def template(e2b: E2b) -> None:
    name = f"made-{uuid.uuid4().hex[:12]}"
    (e2b.folder / "page.html").write_text("hello")
    (e2b.folder / "e2b.Dockerfile").write_text(
        "FROM e2bdev/base\nCOPY page.html /srv/page.html\nENV GREETING=hello\nRUN test -s /srv/page.html\n"
    )
    e2b.run("template", "create", "--path", str(e2b.folder), name)
    assert [name] in [one["names"] for one in e2b.json("template", "list")]
    sandbox_id = e2b.run("sandbox", "create", "--detach", name).split()[-1]
    try:
        assert e2b.run("sandbox", "exec", sandbox_id, "cat /srv/page.html; echo $GREETING") == "hellohello\n"
    finally:
        e2b.run("sandbox", "kill", sandbox_id)
    e2b.run("template", "publish", "--yes", name)
    e2b.run("template", "unpublish", "--yes", name)
    e2b.run("template", "delete", "--yes", name)
    assert [name] not in [one["names"] for one in e2b.json("template", "list")]


DOES: dict[str, Callable[[E2b], None]] = {
    function.__name__: function for function in (create, execute, connect, logs, pause, snapshot, template)
}
