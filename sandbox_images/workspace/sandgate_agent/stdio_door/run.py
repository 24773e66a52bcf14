"""One run of a command at the door: bytes in, frames out, and nothing of it left when the connection is over."""

import asyncio
import contextlib
import signal

from sandgate_agent.nonblocking import NonblockingFile
from sandgate_agent.processes.child import Child, Command, Exit
from sandgate_agent.stdio_door.frames import FrameKind, FrameWriter
from sandgate_agent.stdio_door.inbox import Inbox

_PATIENCE_S = 2.0
"""How long a command may take to end at each step: after the end of its stdin, and after TERM."""


async def run_command(
    command: Command,
    frames: FrameWriter,
    *,
    stdin: Inbox | None = None,
    stdout_as: FrameKind = FrameKind.STDOUT,
) -> Exit:
    """Run to its end. When `stdin` ends the command is asked to end too, ever more firmly; without one it reads none.

    Whatever the command leaves behind in its process group is killed, also when the caller is cancelled.
    Raises: OSError when it cannot be started, ConnectionError when the frames cannot be delivered.
    """
    child = await _spawn(command, stdin=stdin is not None)
    try:
        async with asyncio.TaskGroup() as tasks:
            for file, kind in ((child.stdout, stdout_as), (child.stderr, FrameKind.STDERR)):
                if file is not None:
                    tasks.create_task(_forward(file, kind, frames), name=f"door-{kind.name.lower()}")
            while_it_runs = []
            if stdin is not None and child.stdin is not None:
                feeding = tasks.create_task(_feed(child.stdin, stdin), name="door-stdin")
                ending = tasks.create_task(_end(child, stdin), name="door-end")
                while_it_runs = [feeding, ending]
            await child.exited()
            for task in while_it_runs:
                task.cancel()
            # What the command wrote is in the pipes; a process it left behind may hold them open for ever.
            child.signal_group(signal.SIGKILL)
            child.stop_waiting_for_output()
    except* ConnectionError as failures:
        raise failures.exceptions[0] from None
    finally:
        child.signal_group(signal.SIGKILL)
        await child.exited()
        end = child.reap()
    return end


async def _spawn(command: Command, *, stdin: bool) -> Child:
    starting = asyncio.ensure_future(asyncio.to_thread(Child.spawn, command, stdin=stdin))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread cannot be called back: end what it started.
        with contextlib.suppress(OSError):
            child = await starting
            child.signal_group(signal.SIGKILL)
            child.reap()
        raise


async def _feed(target: NonblockingFile, stdin: Inbox) -> None:
    is_read = True
    async for chunk in stdin.chunks():
        try:
            if is_read:
                await target.write(chunk)
        except BrokenPipeError:
            # The command has closed its stdin and may still have something to say.
            is_read = False
    target.close()


async def _end(child: Child, stdin: Inbox) -> None:
    """Ask for the end of a command whose stdin has ended, whether or not it has read all of that."""
    await stdin.ended.wait()
    await asyncio.sleep(_PATIENCE_S)
    child.signal_group(signal.SIGTERM)
    await asyncio.sleep(_PATIENCE_S)
    child.signal_group(signal.SIGKILL)


async def _forward(file: NonblockingFile, kind: FrameKind, frames: FrameWriter) -> None:
    while data := await file.read():
        await frames.output(kind, data)
