"""Builds the agent and runs it until it is told to stop; the only module that names every part."""

import contextlib
import os
from dataclasses import dataclass

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.application import Application
from sandgate_agent.asgi import Request
from sandgate_agent.background_tasks import BackgroundTasks
from sandgate_agent.configuration import ConfigurationHolder
from sandgate_agent.files.endpoint import FilesEndpoint
from sandgate_agent.filesystem.service import FilesystemService
from sandgate_agent.filesystem.watchers import Watchers
from sandgate_agent.http_server import answer_health, serve_http
from sandgate_agent.metrics import ResourceUsage
from sandgate_agent.processes.registry import ProcessRegistry
from sandgate_agent.processes.service import ProcessService
from sandgate_agent.stdio_door.door import StdioDoor


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    port: int
    door_port: int
    control_token_digest: str
    mcp_token_path: str
    facts_directory: str


async def serve(options: Options) -> None:
    """Returns after SIGTERM or SIGINT, when everything the agent started for callers has been ended."""
    # What the agent and its children create is readable by all and writable by its owner, wherever it was started.
    os.umask(0o022)
    configuration = ConfigurationHolder(
        control_token_digest=options.control_token_digest,
        mcp_token_path=options.mcp_token_path,
        facts_directory=options.facts_directory,
    )
    async with contextlib.AsyncExitStack() as stack:
        threads = FileThreads()
        stack.callback(threads.close)
        tasks = BackgroundTasks()
        stack.push_async_callback(tasks.aclose)

        watchers = Watchers(threads, tasks)
        stack.push_async_callback(watchers.aclose)

        usage = ResourceUsage()

        async def metrics(request: Request) -> None:
            await request.answer_json(200, await threads.run(usage.read), {"Cache-Control": "no-store"})

        files = FilesEndpoint(configuration, threads)
        application = Application(
            configuration,
            open_endpoints={
                ("GET", "/health"): answer_health,
                ("POST", "/init"): configuration.handle_init,
                ("GET", "/files"): files.download,
                ("HEAD", "/files"): files.download,
                ("POST", "/files"): files.upload,
            },
            endpoints={
                ("GET", "/metrics"): metrics,
                ("GET", "/envs"): configuration.handle_environment,
                ("POST", "/files/compose"): files.compose,
            },
            methods={
                **ProcessService(ProcessRegistry(tasks), configuration, threads).methods(),
                **FilesystemService(threads, watchers).methods(),
            },
        )
        door = StdioDoor(configuration, threads, tasks)
        await stack.enter_async_context(door.listening(options.host, options.door_port))
        await serve_http(application, host=options.host, port=options.port)
