"""Several edge processes on one port: starts them, tells them what they must know, and replaces those that fail.

The control plane stays one process. Each worker has a listening socket of its own on the shared port (SO_REUSEPORT),
which this process holds too, so that connections that wait in it survive the worker. What a worker must know of the
sandboxes is sent to it; no answer of the API leaves before every worker has taken in what it tells (`in_step`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.directory import Target
from app.edge.lines import Lines, encode
from app.edge.open_counts import Places, clear_row, make_table
from app.edge.relay import SOCKET_NAME
from app.edge.replica import KnownSandbox
from app.edge.server import SHUTDOWN_S, STREAMS_END_S
from app.edge.waking import Resume
from app.errors import Problem, SandgateError

ACKNOWLEDGED_WITHIN_S = 5.0
_HEARTBEAT_S = 5.0
_START_LIMIT_S = 30.0
_FIRST_RESTART_S = 0.05
_LONGEST_RESTART_S = 10.0
_STEADY_S = 30.0
"""A worker that lived for so long is restarted without delay."""
_LAST_LOOK_S = 0.1
_BACKLOG = 2048

_log = structlog.get_logger()


class EdgeWorkersError(SandgateError):
    """No worker came up."""


class EdgeWorkers:
    """`async with` it: the processes start. `admit` once it is known which sandboxes are alive: they serve."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        home: Path,
        *,
        sandbox_domain: str | None,
        acknowledged_within_s: float = ACKNOWLEDGED_WITHIN_S,
    ) -> None:
        """Args:
        listeners: one for each worker, all on the same port.
        acknowledged_within_s: a worker that has not taken a message in by then is replaced.
        """
        self._listeners = listeners
        self._home = os.open(home, os.O_PATH | os.O_DIRECTORY)
        self._sandbox_domain = sandbox_domain
        self._within_s = acknowledged_within_s
        self._counts = make_table(len(listeners))
        self._places = Places()
        self._known: dict[str, KnownSandbox] = {}
        self._awaited: set[str] = set()
        """As the directory has them."""
        self._step = 0
        self._links: set[_Link] = set()
        """Workers that have been told what there is, and are told every change."""
        self._resume: asyncio.Future[Resume]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def listen(self) -> socket.socket:
        """The socket that the workers pass requests to the API to; the application serves it with `FromWorkers`."""
        # By way of the open folder, because the path of a unix socket may have 107 bytes only.
        path = f"/proc/self/fd/{self._home}/{SOCKET_NAME}"
        with suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        return listener

    async def __aenter__(self) -> Self:
        self._resume = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._keep(number, listener), name=f"edge worker {number}")
            for number, listener in enumerate(self._listeners, start=1)
        ]
        self._tasks.append(asyncio.create_task(self._watch(), name="edge workers' heartbeat"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        with suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=self._home)
        os.close(self._home)
        os.close(self._counts)
        for listener in self._listeners:
            listener.close()

    async def admit(self, resume: Resume, awaited: Iterable[str] = ()) -> None:
        """Let the workers serve; returns once all do, or at least one after a while. Raises: EdgeWorkersError.

        Of the sandboxes that are `awaited` they are told later; until then requests for them are answered with 503.
        """
        self._awaited = set(awaited)
        self._resume.set_result(resume)
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_LIMIT_S):
                while sum(link.at >= 0 for link in self._links) < len(self._listeners):  # noqa: ASYNC110 - at the start
                    await asyncio.sleep(0.005)
        if not self._links:
            raise EdgeWorkersError("No edge worker came up. Look at the log, or unset SANDGATE_EDGE_WORKERS.")

    async def stop(self) -> None:
        """Let the workers end: no new connections, requests have a few seconds. Nothing replaces them."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        links = list(self._links)
        for link in links:
            link.lines.send({"stop": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(STREAMS_END_S + SHUTDOWN_S + 2):
                for link in links:
                    await link.gone.wait()

    def tell(self, sandbox_id: str, target: Target | None) -> None:
        """What is known of a sandbox changed; None: it is gone. Returns before the workers know."""
        before = self._known.get(sandbox_id)
        was_awaited = sandbox_id in self._awaited
        self._awaited.discard(sandbox_id)
        if target is None:
            if before is not None:
                del self._known[sandbox_id]
                self._places.leave(before.place)
            if before is not None or was_awaited:
                self._send({"remove": sandbox_id})
            return
        known = KnownSandbox.of(target, self._places.take() if before is None else before.place)
        if known != before:
            self._known[sandbox_id] = known
            self._send({"put": known})

    async def caught_up(self) -> None:
        """Returns once everything told so far holds in every worker; one that does not answer in time is replaced."""
        step = self._step
        behind = [link for link in self._links if link.at < step]
        deadline = asyncio.get_running_loop().time() + self._within_s
        for link in behind:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await link.reached(step)
                    continue
            await asyncio.sleep(_LAST_LOOK_S)  # if it was us who were held up, its answer is there unread
            if link.at < step and not link.gone.is_set():
                _log.error("edge_worker_hangs", worker=link.number, pid=link.process.pid)
                link.kill()
                await link.gone.wait()

    def in_step(self, api: ASGIApp) -> ASGIApp:
        """The same application, whose answers wait for `caught_up`.

        So what an answer tells is true at once: a sandbox just created is found, and one just killed or paused is not,
        by the next request, whichever worker has it.
        """

        async def in_step(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_in_step(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await self.caught_up()
                await send(message)

            await api(scope, receive, send_in_step)

        return in_step

    def _send(self, message: dict[str, Any]) -> None:
        self._step += 1
        line = encode({**message, "step": self._step})
        for link in self._links:
            link.lines.write(line)

    async def _watch(self) -> None:
        """Find a worker that hangs, even if nobody asks the API for anything."""
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            self._send({})
            await self.caught_up()

    async def _keep(self, number: int, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        delay_s = _FIRST_RESTART_S
        while not self._stopping:
            began = loop.time()
            try:
                reason = await self._run(number, listener)
            except (OSError, EOFError) as error:  # TimeoutError is an OSError
                reason = str(error) or type(error).__name__
            if self._stopping:
                return
            delay_s = _FIRST_RESTART_S if loop.time() - began > _STEADY_S else min(2 * delay_s, _LONGEST_RESTART_S)
            _log.error("edge_worker_ended", worker=number, reason=reason, again_in_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _run(self, number: int, listener: socket.socket) -> str:
        """One life of a worker; how it ended. Raises: OSError or EOFError if it could not begin."""
        ours, theirs = socket.socketpair()
        row = number - 1
        clear_row(self._counts, row)
        files = {
            "listener": listener.fileno(),
            "connection": theirs.fileno(),
            "home": self._home,
            "counts": self._counts,
        }
        numbers = {**files, "row": row, "rows": len(self._listeners)}
        with theirs, ExitStack() as undo:
            undo.enter_context(ours)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "app.edge.worker"),
                *(f"--{name}={value}" for name, value in numbers.items()),
                pass_fds=tuple(files.values()),
                env={name: value for name, value in os.environ.items() if not name.startswith("SANDGATE_")},
                stdin=asyncio.subprocess.DEVNULL,
            )
            undo.pop_all()
        link = _Link(number, process)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link.lines, sock=ours)
            async with asyncio.timeout(_START_LIMIT_S):
                await link.hello
            link.resume = await asyncio.shield(self._resume)
            begin = {"begin": list(self._known.values()), "awaited": list(self._awaited)}
            link.lines.send({**begin, "domain": self._sandbox_domain, "step": self._step})
            self._links.add(link)
            status = await process.wait()
        finally:
            self._links.discard(link)
            await link.end()
        return f"exit status {status}"


class _Link:
    """One life of a worker, as the control plane sees it."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self.lines = Lines(self._heard, self._lost)
        self.hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.at = -1
        """The last step that it has taken in."""
        self.gone = asyncio.Event()
        """The process has ended."""
        self.resume: Resume
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def reached(self, step: int) -> None:
        """Returns once it has taken in this step, or is gone."""
        if self.at < step and not self.gone.is_set():
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((step, waiting))
            await waiting

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()

    async def end(self) -> None:
        """End what is left of it. Safe to repeat."""
        self.kill()
        await self.process.wait()
        self.gone.set()
        self._wake(sys.maxsize)
        for task in self._tasks:
            task.cancel()
        self.lines.close()

    def _heard(self, message: dict[str, Any]) -> None:
        match message:
            case {"at": step}:
                self.at = step
                self._wake(step)
            case {"resume": sandbox_id, "call": call}:
                self._spawn(self._resume(sandbox_id, call))
            case {"hello": True}:
                self.hello.set_result(None)

    def _lost(self) -> None:
        self.kill()  # a worker ends without us too, but not if it hangs
        if not self.hello.done():
            self.hello.set_exception(EOFError("it ended before it was ready"))
            self.hello.exception()  # whoever waits gets it all the same

    def _wake(self, step: int) -> None:
        for wanted, waiting in self._waiting:
            if wanted <= step and not waiting.done():
                waiting.set_result(None)
        self._waiting = [(wanted, waiting) for wanted, waiting in self._waiting if not waiting.done()]

    async def _resume(self, sandbox_id: str, call: int) -> None:
        problem: tuple[int, str] | None = None
        try:
            await self.resume(sandbox_id)
        except Problem as error:
            problem = (error.status, error.message)
        except Exception:  # noqa: BLE001 - the worker waits for an answer, whatever went wrong
            _log.exception("resume_failed", sandbox_id=sandbox_id)
            problem = (Problem.status, "Internal error")
        self.lines.send({"answer": call, "problem": problem})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
