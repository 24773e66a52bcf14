"""Builds the agent of a volume and runs it until it is told to stop."""

import contextlib
import os
from dataclasses import dataclass
from functools import partial

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.application import Application
from sandgate_agent.configuration import ConfigurationHolder
from sandgate_agent.confinement import confine_to
from sandgate_agent.http_server import answer_health, serve_http
from sandgate_agent.users import find_user
from sandgate_agent.volume.content import VolumeContent
from sandgate_agent.volume.entries import Owner

_OWNER = "user"
"""As whom sandboxes run programs unless told otherwise, so that they may write what came in from outside."""


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    host: str
    port: int
    root: str
    control_token_digest: str


async def serve_volume(options: VolumeOptions) -> None:
    """Returns after SIGTERM or SIGINT."""
    os.umask(0)
    user = find_user(_OWNER)
    async with contextlib.AsyncExitStack() as stack:
        threads = FileThreads()
        stack.callback(threads.close)
        content = VolumeContent(
            threads, control_token_digest=options.control_token_digest, owner=Owner(user.uid, user.gid)
        )
        application = Application(
            ConfigurationHolder(
                control_token_digest=options.control_token_digest, mcp_token_path="", facts_directory=""
            ),
            open_endpoints={("GET", "/health"): answer_health, **content.endpoints()},
            endpoints={},
            methods={},
        )
        await serve_http(
            application, host=options.host, port=options.port, when_listening=partial(confine_to, options.root)
        )
