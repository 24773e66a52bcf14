"""Every process the agent has started for callers, and the tasks that look after them."""

import asyncio

from sandgate_agent.background_tasks import BackgroundTasks
from sandgate_agent.errors import InvalidArgument, NotFound
from sandgate_agent.processes.child import Child, Command
from sandgate_agent.processes.messages import Selector, StartRequest
from sandgate_agent.processes.process import Process
from sandgate_agent.processes.subscription import Subscription

_REPLAY_S = 30.0
"""How long a finished process can still be asked for its end."""

Started = tuple[Process, Subscription]


class ProcessRegistry:
    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        self._processes: dict[int, Process] = {}

    async def start(self, request: StartRequest, command: Command, *, deadline_s: float | None) -> Started:
        """Start, and listen from the first byte on. A cancelled caller does not undo the start.

        Raises: InvalidArgument when the program cannot be started.
        """
        starting = self._tasks.start(self._start(request, command, deadline_s), name="process-start")
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_stop_listening)
            raise
        if isinstance(started, InvalidArgument):
            raise started
        return started

    def find(self, selector: Selector) -> Process:
        """A running process, or one that ended a moment ago. Raises: NotFound."""
        if selector.pid is not None:
            process = self._processes.get(selector.pid)
        else:
            tagged = [candidate for candidate in self._processes.values() if candidate.tag == selector.tag]
            process = next((candidate for candidate in tagged if candidate.end is None), tagged[-1] if tagged else None)
        if process is None:
            raise NotFound(f"{selector} not found")
        return process

    def find_running(self, selector: Selector) -> Process:
        """Raises: NotFound."""
        process = self.find(selector)
        if process.end is not None:
            raise NotFound(f"{selector} not found")
        return process

    def running(self) -> list[Process]:
        return [process for process in self._processes.values() if process.end is None]

    async def _start(
        self, request: StartRequest, command: Command, deadline_s: float | None
    ) -> Started | InvalidArgument:
        try:
            if request.terminal is not None:
                child = await asyncio.to_thread(Child.spawn_in_terminal, command, request.terminal)
            else:
                child = await asyncio.to_thread(Child.spawn, command, stdin=request.stdin)
        except (OSError, ValueError) as error:  # ValueError: the operating system was not even asked
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return InvalidArgument(f"could not start '{request.config.command}': {reason}")
        process = Process(child, request.config, request.tag)
        subscription = process.subscribe()
        # Taken out first, so that a process whose id is used again comes last.
        self._processes.pop(process.pid, None)
        self._processes[process.pid] = process
        self._tasks.start(self._look_after(process, deadline_s), name=f"process-{process.pid}")
        return process, subscription

    async def _look_after(self, process: Process, deadline_s: float | None) -> None:
        await process.run(deadline_s=deadline_s)
        asyncio.get_running_loop().call_later(_REPLAY_S, self._forget, process)

    def _forget(self, process: Process) -> None:
        if self._processes.get(process.pid) is process:
            del self._processes[process.pid]


def _stop_listening(starting: asyncio.Task[Started | InvalidArgument]) -> None:
    """For a caller that is gone: a listener that nobody unsubscribes would hold up the command's output for ever."""
    if starting.cancelled() or starting.exception() is not None:
        return
    started = starting.result()
    if not isinstance(started, InvalidArgument):
        process, subscription = started
        process.unsubscribe(subscription)
