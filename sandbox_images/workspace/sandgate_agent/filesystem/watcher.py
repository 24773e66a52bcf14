"""Watching one directory, or a whole tree, through inotify(7)."""

import asyncio
import errno
import logging
import os
import stat
from collections import deque
from typing import Any, Self, TypedDict, Unpack

from inotify_simple import INotify, flags  # type: ignore[import-untyped]  # it has no type hints

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.background_tasks import BackgroundTasks
from sandgate_agent.errors import InvalidArgument, ResourceExhausted, os_errors_mapped
from sandgate_agent.filesystem.entries import as_text, read_entry
from sandgate_agent.filesystem.mounts import is_on_network_mount
from sandgate_agent.nonblocking import until_readable

FilesystemEvent = dict[str, Any]
"""A FilesystemEvent of the envd contract, in its JSON form."""

_CAPACITY = 1 << 16
"""Events kept for a caller who does not fetch them; older ones are dropped."""

_MASK = (
    flags.CREATE
    | flags.MODIFY
    | flags.ATTRIB
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)

_TYPES = (
    # Named as fsnotify names them, the library behind the contract's events.
    (flags.CREATE | flags.MOVED_TO, "EVENT_TYPE_CREATE"),
    (flags.MODIFY, "EVENT_TYPE_WRITE"),
    (flags.DELETE | flags.DELETE_SELF, "EVENT_TYPE_REMOVE"),
    (flags.MOVED_FROM | flags.MOVE_SELF, "EVENT_TYPE_RENAME"),
    (flags.ATTRIB, "EVENT_TYPE_CHMOD"),
)

_GONE = ("EVENT_TYPE_REMOVE", "EVENT_TYPE_RENAME")

_log = logging.getLogger(__name__)


class WatchOptions(TypedDict):
    root: str
    is_recursive: bool
    has_entries: bool
    allows_network_mounts: bool


class Watcher:
    """An asynchronous iterator of events, or a box of them to be emptied. Whoever started it closes it.

    The kernel's events are taken over as soon as they are there, because a new directory has to be watched before
    much happens in it; what happened before that is found by looking into it.
    """

    def __init__(self, threads: FileThreads, **options: Unpack[WatchOptions]) -> None:
        self._threads = threads
        self._root = options["root"]
        self._is_recursive = options["is_recursive"]
        self._has_entries = options["has_entries"]
        self._allows_network_mounts = options["allows_network_mounts"]
        self._inotify: INotify | None = None
        self._directories: dict[int, str] = {}
        """Watched directories by watch descriptor."""
        self._foreseen: set[str] = set()
        """Paths already told of because they were found in a new directory; the kernel may tell of them once more, by
        an event that waits already."""
        self._events: deque[FilesystemEvent] = deque(maxlen=_CAPACITY)
        self._has_news = asyncio.Event()
        self._turn = asyncio.Lock()
        self._taking: asyncio.Task[None] | None = None

    async def start(self, tasks: BackgroundTasks) -> None:
        """Returns once nothing can be missed any more. Raises: NotFound, InvalidArgument."""
        await self._threads.run(self._open)
        self._taking = tasks.start(self._take_for_ever(), name="watcher")

    async def close(self) -> None:
        """Safe to repeat."""
        async with self._turn:  # so that no thread is using it
            inotify, self._inotify = self._inotify, None
            if self._taking is not None:
                self._taking.cancel()
        if self._taking is not None:
            await asyncio.wait([self._taking])
        if inotify is not None:
            inotify.close()

    async def take_events(self) -> list[FilesystemEvent]:
        """Everything that has happened until now, and not been taken before."""
        await self._take()
        events = list(self._events)
        self._events.clear()
        return events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FilesystemEvent:
        while not self._events:
            self._has_news.clear()
            await self._has_news.wait()
        return self._events.popleft()

    @property
    def _opened(self) -> INotify:
        if self._inotify is None:
            raise ValueError("the watcher is closed")
        return self._inotify

    async def _take_for_ever(self) -> None:
        while True:
            await until_readable(self._opened.fileno())
            await self._take()

    async def _take(self) -> None:
        async with self._turn:
            if self._inotify is not None:
                self._events.extend(await self._threads.run(self._read))
                self._has_news.set()

    # What follows runs in a thread.

    def _open(self) -> None:
        with os_errors_mapped(self._root):
            if not stat.S_ISDIR(os.stat(self._root).st_mode):
                raise InvalidArgument(f"path '{self._root}' is not a directory")
            if not self._allows_network_mounts and is_on_network_mount(self._root):
                raise InvalidArgument(f"cannot watch path on network filesystem: {self._root}")
            try:
                self._inotify = INotify(nonblocking=True)
            except OSError as error:
                if error.errno == errno.EMFILE:
                    raise ResourceExhausted(
                        "too many watchers on this machine: see fs.inotify.max_user_instances"
                    ) from error
                raise
            try:
                self._watch_tree(self._root)
            except BaseException:
                self._inotify.close()
                self._inotify = None
                raise

    def _watch_tree(self, top: str) -> list[str]:
        """Watch a directory, and in a recursive watcher all below it; answers every path found there."""
        self._watch(top)
        found: list[str] = []
        waiting = [top] if self._is_recursive else []
        while waiting:
            for child in _children(waiting.pop()):
                found.append(child.path)
                # Watched before it is looked into, so that nothing is missed in between.
                if child.is_dir(follow_symlinks=False) and self._watch_if_there(child.path):
                    waiting.append(child.path)
        return found

    def _watch_if_there(self, directory: str) -> bool:
        try:
            self._watch(directory)
        except OSError:
            return False
        return True

    def _watch(self, directory: str) -> None:
        try:
            descriptor = self._opened.add_watch(directory, _MASK)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ResourceExhausted("too many watched directories: see fs.inotify.max_user_watches") from error
            raise
        self._directories[descriptor] = directory

    def _read(self) -> list[FilesystemEvent]:
        events: list[FilesystemEvent] = []
        while batch := list(self._opened.read(timeout=0)):
            for descriptor, mask, _, name in batch:
                if mask & flags.Q_OVERFLOW:
                    _log.warning("watch_events_lost path=%s", self._root)
                    continue
                directory = self._directories.get(descriptor)
                if mask & flags.IGNORED:
                    self._directories.pop(descriptor, None)
                elif directory is not None:
                    events += self._translate(directory, mask, name)
        self._foreseen.clear()
        return events

    def _translate(self, directory: str, mask: int, name: str) -> list[FilesystemEvent]:
        if not name and directory != self._root:
            return []  # about a directory itself: its parent has told
        kind = next((kind for bits, kind in _TYPES if mask & bits), None)
        if kind is None:
            return []
        path = os.path.join(directory, name) if name else directory
        if kind == "EVENT_TYPE_CREATE" and path in self._foreseen:
            self._foreseen.discard(path)
            return []
        if kind in _GONE:
            self._foreseen.discard(path)
        events = [self._event(kind, path)]
        if self._is_recursive and mask & flags.ISDIR:
            if kind == "EVENT_TYPE_CREATE":
                for found in self._watch_new_tree(path):
                    events += self._told_late(found)
            elif mask & flags.MOVED_FROM:
                self._unwatch(path)
        return events

    def _watch_new_tree(self, directory: str) -> list[str]:
        """As `_watch_tree`; nothing for a directory that is gone again or that cannot be watched."""
        try:
            return self._watch_tree(directory)
        except ResourceExhausted as error:
            _log.warning("watch_incomplete path=%s reason=%s", directory, error.message)
            return []
        except OSError:
            return []

    def _told_late(self, path: str) -> list[FilesystemEvent]:
        """What a file must have gone through that was there before its directory was watched."""
        self._foreseen.add(path)
        events = [self._event("EVENT_TYPE_CREATE", path)]
        try:
            status = os.lstat(path)
        except OSError:
            return events
        if stat.S_ISREG(status.st_mode) and status.st_size:
            events.append(self._event("EVENT_TYPE_WRITE", path))
        return events

    def _unwatch(self, directory: str) -> None:
        """Forget a tree that has moved away: under its new name it is another one."""
        self._foreseen = {path for path in self._foreseen if not path.startswith(directory + "/")}
        for descriptor, watched in list(self._directories.items()):
            if watched == directory or watched.startswith(directory + "/"):
                del self._directories[descriptor]
                try:
                    self._opened.rm_watch(descriptor)
                except OSError:
                    continue

    def _event(self, kind: str, path: str) -> FilesystemEvent:
        event: FilesystemEvent = {"type": kind, "name": as_text(os.path.relpath(path, self._root))}
        if self._has_entries and kind not in _GONE:
            try:
                event["entry"] = read_entry(path)
            except OSError:
                return event
        return event


def _children(directory: str) -> "list[os.DirEntry[str]]":
    """Empty for a directory that is gone again."""
    try:
        with os.scandir(directory) as children:
            return list(children)
    except OSError:
        return []
