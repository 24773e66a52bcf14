"""A sandbox's log: what became of it, and what its agent and its gateway say. Not what commands in it print."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from app.engines.interface import Engine
from app.errors import EngineError
from app.sandboxes.directory import Directory
from app.sandboxes.failures import sandbox_not_found
from app.sandboxes.journal import Journal, Level, LogEntry

_SPEAKERS = {"workspace": "agent", "gateway": "gateway"}
_MOST_LINES = 1000
_LONGEST_LINE = 8192
_LINE = re.compile(r"[0-9 :,.-]+ (?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<message>.*)")
"""What agent and gateway write: a moment, which the engine tells better, a level, and the rest."""
_LEVELS = {
    "DEBUG": Level.DEBUG,
    "INFO": Level.INFO,
    "WARNING": Level.WARN,
    "ERROR": Level.ERROR,
    "CRITICAL": Level.ERROR,
}


class SandboxLogs:
    def __init__(self, journal: Journal, engine: Engine, directory: Directory) -> None:
        self._journal = journal
        self._engine = engine
        self._directory = directory

    async def read(self, team_id: str, sandbox_id: str) -> Sequence[LogEntry]:
        """Oldest first. What the containers said is there as long as they are; the rest for 7 days.

        Raises: NotFound.
        """
        if not await self._journal.is_of(team_id, sandbox_id):
            raise sandbox_not_found(sandbox_id)
        entries = list(await self._journal.entries(sandbox_id))
        live = self._directory.find(sandbox_id)
        if live is not None:
            roles = ["workspace", "gateway"] if live.sandbox.has_gateway else ["workspace"]
            for role in roles:
                entries.extend(await self._said_by(live.pod.id, role))
        return sorted(entries, key=lambda entry: entry.at)

    async def _said_by(self, pod_id: str, role: str) -> Sequence[LogEntry]:
        try:
            output = await self._engine.logs(pod_id, role, tail=_MOST_LINES, timestamps=True)
        except EngineError:
            return []  # the engine is away for a while; what became of the sandbox is told all the same
        return list(_parsed(output, _SPEAKERS[role]))


def _parsed(output: str, logger: str) -> Iterator[LogEntry]:
    """Lines that are not as agent and gateway write them (tracebacks, say) have the level of the one before."""
    level = Level.INFO
    for line in output.splitlines():
        moment, _, text = line.partition(" ")
        try:
            at = datetime.fromisoformat(moment)
        except ValueError:
            continue
        if at.tzinfo is None or not text.strip():
            continue
        if found := _LINE.fullmatch(text):
            level, text = _LEVELS[found["level"]], found["message"]
        yield LogEntry(at=at, level=level, message=text[:_LONGEST_LINE], fields={"logger": logger})
