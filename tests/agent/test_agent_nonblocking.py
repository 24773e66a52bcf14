"""A pipe that is closed: the number of its descriptor may be another file's at once."""

import asyncio
import os

import pytest
from sandgate_agent.nonblocking import NonblockingFile

from tests.waiting import BOUND_S


class TwoPipes:
    """One that a NonblockingFile writes to, and one that gets its number when that is closed."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.file = NonblockingFile(os.fdopen(writing, "wb", buffering=0))
        self.other_reading, self._other_writing = os.pipe2(os.O_NONBLOCK)

    def close_and_reuse(self) -> None:
        self.file.close()
        os.dup2(self._other_writing, self.file.fileno())

    def of_the_other(self) -> bytes:
        """What was written to the other pipe; closes all."""
        os.close(self._other_writing)
        os.close(self.file.fileno())
        with open(self.other_reading, "rb") as file:
            written = file.read()
        os.close(self.reading)
        return written


async def test_what_is_written_to_a_closed_pipe_reaches_nobody_else() -> None:
    pipes = TwoPipes()
    pipes.close_and_reuse()

    with pytest.raises(BrokenPipeError):
        await pipes.file.write(b"for the first")

    assert pipes.of_the_other() == b""


async def test_what_waits_for_a_pipe_that_is_closed_reaches_nobody_else() -> None:
    pipes = TwoPipes()
    waiting = asyncio.create_task(pipes.file.write(bytes(1 << 20)))
    await asyncio.to_thread(os.read, pipes.reading, 1)
    pipes.file.stop_waiting()  # it goes on in the next turn of the event loop, when the pipe is closed
    pipes.close_and_reuse()

    with pytest.raises(BrokenPipeError):
        async with asyncio.timeout(BOUND_S):
            await waiting

    assert pipes.of_the_other() == b""


async def test_a_closed_pipe_reads_nothing_of_anybody_else() -> None:
    reading, writing = os.pipe()
    other_reading, other_writing = os.pipe()
    file = NonblockingFile(os.fdopen(reading, "rb", buffering=0))
    file.close()
    os.dup2(other_reading, file.fileno())
    os.write(other_writing, b"for the other")

    with pytest.raises(BrokenPipeError):
        await file.read()

    assert os.read(other_reading, 100) == b"for the other"
    for descriptor in (writing, other_reading, other_writing, file.fileno()):
        os.close(descriptor)
