"""A process that callers started: its output goes to whoever listens, and it outlives every one of them."""

import asyncio
import signal

from sandgate_agent.errors import AgentError, DeadlineExceeded, InvalidArgument, NotFound, Unknown
from sandgate_agent.nonblocking import NonblockingFile
from sandgate_agent.processes.child import Child, Exit, TerminalSize
from sandgate_agent.processes.messages import Input, ProcessConfig, Selector, data_event, end_event, start_event
from sandgate_agent.processes.subscription import Event, Subscription


class Process:
    def __init__(self, child: Child, config: ProcessConfig, tag: str | None) -> None:
        self.config = config
        self.tag = tag
        self.pid = child.pid
        self.end: Exit | None = None
        """None while it runs, that is until it has exited and everything that could still write its output is gone."""
        self._child = child
        self._has_exited = False
        self._is_killed = False
        self._is_past_deadline = False
        self._subscriptions: set[Subscription] = set()
        self._pumps: list[asyncio.Task[None]] = []
        self._stdin_turn = asyncio.Lock()

    def subscribe(self) -> Subscription:
        """The start event, then the output from now on, then the end. `unsubscribe` when done with it."""
        subscription = Subscription(start_event(self.pid))
        if self.end is None:
            self._subscriptions.add(subscription)
        else:
            subscription.end(self._last_event(self.end))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        subscription.close()
        self._subscriptions.discard(subscription)

    async def run(self, *, deadline_s: float | None) -> None:
        """Pass the output on until it ends, then reap. At the deadline the whole group is killed."""
        outputs = {"stdout": self._child.stdout, "stderr": self._child.stderr, "pty": self._child.terminal}
        deadline = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream, file in outputs.items():
                    if file is not None:
                        self._pumps.append(tasks.create_task(self._pump(stream, file), name=f"process-{stream}"))
                if deadline_s is not None:
                    deadline = asyncio.get_running_loop().call_later(deadline_s, self._pass_deadline)
                await self._child.exited()
                self._has_exited = True
                if self._is_killed:
                    self._child.stop_waiting_for_output()
        except BaseException:
            self._child.signal_group(signal.SIGKILL)
            raise
        finally:
            if deadline is not None:
                deadline.cancel()
            self._finish()

    def signal(self, number: signal.Signals) -> None:
        """Signal the process and its group. Silent once it has ended.

        After a KILL the end comes at once, even if something that has left the group still holds the output open.
        """
        if self.end is not None:
            return
        self._child.signal_group(number)
        if number == signal.SIGKILL:
            self._is_killed = True
            if self._has_exited:
                self._child.stop_waiting_for_output()

    async def write(self, content: Input) -> None:
        """Returns once the process's pipe or terminal has taken everything.

        Raises: NotFound if the process has ended, AgentError.
        """
        if content.is_for_terminal:
            if self._child.terminal is None:
                raise AgentError("error writing to tty: the process has no terminal")
            target, name = self._child.terminal, "tty"
        else:
            if self._child.terminal is not None:
                raise AgentError("error writing to stdin: the process has a terminal, send pty input instead")
            if self._child.stdin is None:
                raise AgentError("error writing to stdin: it was not enabled when the process was started")
            target, name = self._child.stdin, "stdin"
        async with self._stdin_turn:
            try:
                await target.write(content.data)
            except (OSError, ValueError) as error:
                if self.end is not None:
                    raise NotFound(f"{Selector(pid=self.pid)} not found") from error
                raise AgentError(f"error writing to {name}: {_reason(error)}") from error

    async def close_stdin(self) -> None:
        """Safe to repeat. Raises: Unknown on a terminal."""
        if self._child.terminal is not None:
            raise Unknown("error closing stdin: the process has a terminal, send Ctrl-D (0x04) instead")
        if self._child.stdin is not None:
            async with self._stdin_turn:
                self._child.stdin.close()

    def resize(self, size: TerminalSize) -> None:
        """Raises: InvalidArgument without a terminal."""
        try:
            self._child.resize(size)
        except ValueError as error:
            raise InvalidArgument(str(error)) from error

    async def _pump(self, stream: str, file: NonblockingFile) -> None:
        while data := await file.read():
            event = data_event(stream, data)
            for subscription in tuple(self._subscriptions):
                await subscription.put(event)

    def _pass_deadline(self) -> None:
        self._is_past_deadline = True
        self.signal(signal.SIGKILL)
        # A listener that does not read must not keep the dead process from being reaped.
        for pump in self._pumps:
            pump.cancel()

    def _finish(self) -> None:
        self.end = self._child.reap()
        for subscription in self._subscriptions:
            subscription.end(self._last_event(self.end))
        self._subscriptions.clear()

    def _last_event(self, end: Exit) -> Event | AgentError:
        if self._is_past_deadline:
            return DeadlineExceeded("the command ran longer than its Connect-Timeout-Ms and was killed")
        return end_event(end)


def _reason(error: Exception) -> str:
    if isinstance(error, BrokenPipeError):
        return "it is closed"
    return (isinstance(error, OSError) and error.strerror) or str(error)
