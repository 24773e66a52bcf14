"""The calls of filesystem.Filesystem."""

from collections.abc import Mapping
from typing import Any

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.connect_rpc import Call, Method, ServerStream, ServerStreaming, Unary
from sandgate_agent.errors import InvalidArgument, os_errors_mapped
from sandgate_agent.fields import boolean, integer, text
from sandgate_agent.filesystem.changes import make_directory, move, remove
from sandgate_agent.filesystem.entries import Entry, list_entries, read_entry
from sandgate_agent.filesystem.watcher import WatchOptions
from sandgate_agent.filesystem.watchers import Watchers
from sandgate_agent.paths import resolve_path

_KEEPALIVE: dict[str, Any] = {"keepalive": {}}

Message = Mapping[str, Any]


class FilesystemService:
    """Everything is done with the agent's rights, as in E2B's own agent; what is made belongs to the caller's user."""

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
        path = _path(message, "path", call)
        return {"entry": await self._threads.run(_entry, path)}

    async def _make_dir(self, call: Call, message: Message) -> Message:
        path = _path(message, "path", call)
        await self._threads.run(make_directory, path, call.user)
        return {"entry": await self._threads.run(_entry, path)}

    async def _move(self, call: Call, message: Message) -> Message:
        source, destination = _path(message, "source", call), _path(message, "destination", call)
        await self._threads.run(move, source, destination, call.user)
        return {"entry": await self._threads.run(_entry, destination)}

    async def _list_dir(self, call: Call, message: Message) -> Message:
        depth = integer(message, "depth")
        if depth < 0:
            raise InvalidArgument("depth must not be negative")
        path = _path(message, "path", call)
        return {"entries": await self._threads.run(_entries, path, max(depth, 1))}

    async def _remove(self, call: Call, message: Message) -> Message:
        await self._threads.run(remove, _path(message, "path", call))
        return {}

    async def _watch_dir(self, call: Call, message: Message, stream: ServerStream) -> None:
        async with self._watchers.watching(**_watch(message, call)) as watcher:
            await stream.send({"start": {}})
            async for event in watcher:
                await stream.send({"filesystem": event})

    async def _create_watcher(self, call: Call, message: Message) -> Message:
        return {"watcherId": await self._watchers.create(**_watch(message, call))}

    async def _get_watcher_events(self, _call: Call, message: Message) -> Message:
        return {"events": await self._watchers.events(text(message, "watcherId"))}

    async def _remove_watcher(self, _call: Call, message: Message) -> Message:
        await self._watchers.remove(text(message, "watcherId"))
        return {}


def _path(message: Message, name: str, call: Call) -> str:
    """The empty path is the directory in which processes start."""
    return resolve_path(text(message, name) or call.default_directory, call.user)


def _watch(message: Message, call: Call) -> WatchOptions:
    return {
        "root": _path(message, "path", call),
        "is_recursive": boolean(message, "recursive"),
        "has_entries": boolean(message, "includeEntry"),
        "allows_network_mounts": boolean(message, "allowNetworkMounts"),
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
