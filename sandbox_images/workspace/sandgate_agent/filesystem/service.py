"""The calls of filesystem.Filesystem."""

from collections.abc import Mapping
from typing import Any

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.connect_rpc import Call, Method, ServerStream, ServerStreaming, Unary
from sandgate_agent.errors import InvalidArgument, os_errors_mapped
from sandgate_agent.fields import boolean, integer, text
from sandgate_agent.filesystem.changes import make_directory, move, remove
from sandgate_agent.filesystem.entries import Entry, list_entries, read_entry
from sandgate_agent.filesystem.watchers import Watchers, WatchOptions
from sandgate_agent.paths import resolve_path
from sandgate_agent.users import User

_KEEPALIVE: dict[str, Any] = {"keepalive": {}}

Message = Mapping[str, Any]


class FilesystemService:
    def __init__(self, threads: FileThreads, watchers: Watchers) -> None:
        self._threads = threads
        self._watchers = watchers

    def methods(self) -> dict[str, Method]:
        return {
            "/filesystem.Filesystem/Stat": Unary(self._stat),
            "/filesystem.Filesystem/MakeDir": Unary(self._make_dir),
            "/filesystem.Filesystem/Move": Unary(self._move),
            "/filesystem.Filesystem/ListDir": Unary(self._list_dir),
            "/filesystem.Filesystem/Remove": Unary(self._remove),
            "/filesystem.Filesystem/WatchDir": ServerStreaming(self._watch_dir, _KEEPALIVE),
            "/filesystem.Filesystem/CreateWatcher": Unary(self._create_watcher),
            "/filesystem.Filesystem/GetWatcherEvents": Unary(self._get_watcher_events),
            "/filesystem.Filesystem/RemoveWatcher": Unary(self._remove_watcher),
        }

    async def _stat(self, call: Call, message: Message) -> Message:
        path = _path(message, "path", call.user)
        return {"entry": await self._threads.run_as(call.user, _entry, path)}

    async def _make_dir(self, call: Call, message: Message) -> Message:
        path = _path(message, "path", call.user)
        await self._threads.run_as(call.user, make_directory, path)
        return {"entry": await self._threads.run_as(call.user, _entry, path)}

    async def _move(self, call: Call, message: Message) -> Message:
        destination = _path(message, "destination", call.user)
        await self._threads.run_as(call.user, move, _path(message, "source", call.user), destination)
        return {"entry": await self._threads.run_as(call.user, _entry, destination)}

    async def _list_dir(self, call: Call, message: Message) -> Message:
        depth = integer(message, "depth")
        if depth < 0:
            raise InvalidArgument("depth must not be negative")
        path = _path(message, "path", call.user)
        return {"entries": await self._threads.run_as(call.user, _entries, path, max(depth, 1))}

    async def _remove(self, call: Call, message: Message) -> Message:
        await self._threads.run_as(call.user, remove, _path(message, "path", call.user))
        return {}

    async def _watch_dir(self, call: Call, message: Message, stream: ServerStream) -> None:
        async with self._watchers.watching(call.user, **_watch(message, call.user)) as watcher:
            await stream.send({"start": {}})
            async for event in watcher:
                await stream.send({"filesystem": event})

    async def _create_watcher(self, call: Call, message: Message) -> Message:
        return {"watcherId": await self._watchers.create(call.user, **_watch(message, call.user))}

    async def _get_watcher_events(self, _call: Call, message: Message) -> Message:
        return {"events": await self._watchers.events(text(message, "watcherId"))}

    async def _remove_watcher(self, _call: Call, message: Message) -> Message:
        await self._watchers.remove(text(message, "watcherId"))
        return {}


def _path(message: Message, name: str, user: User) -> str:
    return resolve_path(text(message, name), user)


def _watch(message: Message, user: User) -> WatchOptions:
    """`allowNetworkMounts` is not looked at: whatever is mounted in a sandbox may be watched."""
    return {
        "root": _path(message, "path", user),
        "is_recursive": boolean(message, "recursive"),
        "has_entries": boolean(message, "includeEntry"),
    }


def _entry(path: str) -> Entry:
    with os_errors_mapped(path):
        return read_entry(path)


def _entries(path: str, depth: int) -> list[Entry]:
    with os_errors_mapped(path):
        try:
            return list_entries(path, depth)
        except NotADirectoryError as error:
            raise InvalidArgument(f"path '{path}' is not a directory") from error
