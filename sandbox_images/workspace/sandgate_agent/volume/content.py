"""The endpoints of a volume: /path, /dir and /file, for whoever shows the control token.

They do what E2B's volume API does under `/volumecontent/{volumeID}`, which the control plane passes on. The volume is
the root of the process, so no link in it leads out.
"""

import os
from collections.abc import Awaitable, Callable

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.asgi import Request
from sandgate_agent.configuration import has_digest
from sandgate_agent.errors import InvalidArgument, Unauthenticated, os_errors_mapped
from sandgate_agent.files.download import send_download
from sandgate_agent.files.sink import FileSink
from sandgate_agent.files.targets import UploadTarget, UploadTargets
from sandgate_agent.filesystem.changes import remove
from sandgate_agent.users import User
from sandgate_agent.volume.entries import (
    Owner,
    Ownership,
    list_entries,
    make_directory,
    open_file,
    read_entry,
    update,
)

Endpoint = Callable[[Request], Awaitable[None]]

_MOST_DEPTH = 10
_MOST_MODE = 0o7777
_MOST_ID = (1 << 32) - 2
_ROOT = User("root", 0, 0, (0,), "/", "/bin/sh")


class VolumeContent:
    def __init__(self, threads: FileThreads, *, control_token_digest: str, owner: Owner) -> None:
        """`owner` is whose new entries are unless said otherwise."""
        self._threads = threads
        self._targets = UploadTargets()
        self._control_token_digest = control_token_digest
        self._owner = owner

    def endpoints(self) -> dict[tuple[str, str], Endpoint]:
        served = {
            ("GET", "/path"): self._stat,
            ("PATCH", "/path"): self._update,
            ("DELETE", "/path"): self._remove,
            ("GET", "/dir"): self._list,
            ("POST", "/dir"): self._make_directory,
            ("GET", "/file"): self._read,
            ("PUT", "/file"): self._write,
        }
        return {route: self._admitted(endpoint) for route, endpoint in served.items()}

    def _admitted(self, endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> None:
            if not has_digest(request.headers.get("x-control-token", ""), self._control_token_digest):
                raise Unauthenticated("the control token is missing or invalid")
            request.query["path"] = _path(request)
            await endpoint(request)

        return checked

    async def _stat(self, request: Request) -> None:
        await request.answer_json(200, await self._threads.run(read_entry, request.query["path"]))

    async def _update(self, request: Request) -> None:
        entry = await self._threads.run(update, request.query["path"], _ownership(request))
        await request.answer_json(200, entry)

    async def _remove(self, request: Request) -> None:
        path = request.query["path"]
        if path == "/":
            raise InvalidArgument("the root of a volume cannot be removed")

        def remove_existing() -> None:
            with os_errors_mapped(path):
                os.lstat(path)
            remove(path)

        await self._threads.run(remove_existing)
        await request.answer(204)

    async def _list(self, request: Request) -> None:
        depth = _number(request, "depth", most=_MOST_DEPTH)
        entries = await self._threads.run(list_entries, request.query["path"], max(depth or 1, 1))
        await request.answer_json(200, entries)

    async def _make_directory(self, request: Request) -> None:
        entry = await self._threads.run(
            make_directory,
            request.query["path"],
            _ownership(request),
            self._owner,
            with_parents=request.query.get("force") == "true",
        )
        await request.answer_json(201, entry)

    async def _read(self, request: Request) -> None:
        await send_download(request, _ROOT, self._threads)

    async def _write(self, request: Request) -> None:
        path = request.query["path"]
        force = request.query.get("force") == "true"
        target = self._targets.at(path)
        async with _VolumeFileSink(self._threads, target, _ownership(request), self._owner, force=force) as sink:
            async for chunk in request.chunks():
                await sink.write(chunk)
        await request.answer_json(201, await self._threads.run(read_entry, path))


class _VolumeFileSink(FileSink):
    """An upload into a volume, which has other rules of what may be there already and whose it is afterwards."""

    def __init__(
        self, threads: FileThreads, target: UploadTarget, wanted: Ownership, owner: Owner, *, force: bool
    ) -> None:
        super().__init__(threads, target, _ROOT, {})
        self._wanted = wanted
        self._owner = owner
        self._force = force

    def _open(self) -> None:
        self._descriptor, self._is_new = open_file(self.path, self._wanted, self._owner, force=self._force)


def _path(request: Request) -> str:
    """Absolute and normalised, from the root of the volume. Raises: InvalidArgument."""
    path = request.query.get("path")
    if not path:
        raise InvalidArgument("the query parameter path is required")
    if "\0" in path:
        raise InvalidArgument("a path may not contain a NUL character")
    return "/" + os.path.normpath("/" + path).lstrip("/")


def _ownership(request: Request) -> Ownership:
    return Ownership(
        uid=_number(request, "uid", most=_MOST_ID),
        gid=_number(request, "gid", most=_MOST_ID),
        mode=_number(request, "mode", most=_MOST_MODE),
    )


def _number(request: Request, name: str, *, most: int) -> int | None:
    """Raises: InvalidArgument."""
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= most):
        raise InvalidArgument(f"{name} must be a whole number from 0 to {most}")
    return int(text)
