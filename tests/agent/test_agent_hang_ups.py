"""A caller that hangs up while its command is being started."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sandgate_agent.background_tasks import BackgroundTasks
from sandgate_agent.processes.child import Command
from sandgate_agent.processes.messages import Input, ProcessConfig, StartRequest
from sandgate_agent.processes.registry import ProcessRegistry
from sandgate_agent.users import find_user

from tests.waiting import BOUND_S, until

TALKATIVE = ("/bin/bash", "-c", "head -c 10000000 /dev/zero; read line")


@pytest.fixture
async def registry() -> AsyncIterator[ProcessRegistry]:
    tasks = BackgroundTasks()
    yield ProcessRegistry(tasks)
    await tasks.aclose()


async def test_a_command_whose_caller_is_gone_before_it_runs_is_not_held_up(registry: ProcessRegistry) -> None:
    config = ProcessConfig(TALKATIVE[0], TALKATIVE[1:])
    request = StartRequest(config, tag=None, stdin=True, terminal=None)
    command = Command(TALKATIVE, {}, "/", find_user("root"))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):  # over in the first turn of the event loop, before any thread is back
            await registry.start(request, command, deadline_s=None)

    await until(registry.running)
    [process] = registry.running()
    await process.write(Input(b"line\n", is_for_terminal=False))
    async with asyncio.timeout(BOUND_S):
        events = [event async for event in process.subscribe()]
    assert events[-1]["end"]["exitCode"] == 0
