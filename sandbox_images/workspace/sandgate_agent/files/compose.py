"""POST /files/compose: files that were uploaded in parts become one."""

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.asgi import Request
from sandgate_agent.connect_rpc import decode_message
from sandgate_agent.errors import InvalidArgument, os_errors_mapped
from sandgate_agent.fields import optional_text, string_list, text
from sandgate_agent.files.upload import file_entry
from sandgate_agent.paths import make_directories, resolve_path
from sandgate_agent.users import User, find_user

_BODY_LIMIT = 1 << 20
_PIECE = 1 << 30
"""Bytes that one sendfile(2) is asked for; it moves at most about 2 GiB."""


@dataclass(frozen=True, slots=True)
class Composition:
    sources: tuple[str, ...]
    destination: str
    user: User


async def compose_files(request: Request, default_user: str, threads: FileThreads) -> None:
    """Join the sources in the order given, then remove them. The destination is whole, or as it was before.

    Raises: AgentError.
    """
    composition = _parse(decode_message(await request.body(limit=_BODY_LIMIT)), default_user)
    await threads.run(_compose, composition)
    await request.answer_json(200, file_entry(composition.destination, {}))


def _parse(message: Mapping[str, Any], default_user: str) -> Composition:
    user = find_user(optional_text(message, "username") or default_user)
    sources, destination = string_list(message, "sourcePaths"), text(message, "destination")
    if not sources:
        raise InvalidArgument("source_paths must not be empty")
    if not destination:
        raise InvalidArgument("destination is required")
    composition = Composition(
        tuple(resolve_path(source, user) for source in sources), resolve_path(destination, user), user
    )
    if composition.destination in composition.sources:
        raise InvalidArgument(f"source path '{composition.destination}' is the destination")
    return composition


def _compose(composition: Composition) -> None:
    for source in composition.sources:
        with os_errors_mapped(source):
            if not stat.S_ISREG(os.stat(source).st_mode):
                raise InvalidArgument(f"source path '{source}' is not a regular file")
    destination, user = composition.destination, composition.user
    with os_errors_mapped(destination):
        make_directories(os.path.dirname(destination), user)
        if os.path.isdir(destination):
            raise InvalidArgument(f"path '{destination}' is a directory")
        # Beside the destination, so that it is complete when it gets its name.
        staged = os.path.join(os.path.dirname(destination), f".compose-{os.urandom(8).hex()}")
        try:
            with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb", buffering=0) as file:
                os.fchown(file.fileno(), user.uid, user.gid)
                for source in composition.sources:
                    with os_errors_mapped(source), open(source, "rb", buffering=0) as part:
                        while os.sendfile(file.fileno(), part.fileno(), None, _PIECE):
                            pass
            os.rename(staged, destination)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged)
            raise
    for source in composition.sources:
        with contextlib.suppress(OSError):
            os.unlink(source)
