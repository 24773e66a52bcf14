"""A file being uploaded: given to its user, written in large pieces, removed if a new one cannot be finished."""

import os
import stat
from typing import Self

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.errors import InvalidArgument, os_errors_mapped
from sandgate_agent.files.metadata import Metadata, replace_metadata
from sandgate_agent.files.targets import UploadTarget
from sandgate_agent.paths import make_directories
from sandgate_agent.users import User

_PIECE = 1 << 20
"""Bytes collected before a write: a file up to this size is one write(2), so that a watcher sees one event."""


class FileSink:
    """Use as an async context: leaving it without an error finishes the file.

    A file that several write to goes with the last of them, unless one has finished it or it was there before.

    The order of system calls is part of the contract: E2B's tests count the events of one upload, CREATE (open), CHMOD
    (chown), WRITE (write), so there is no staging file, and the owner is only set where it is not right already.
    """

    def __init__(self, threads: FileThreads, target: UploadTarget, user: User, metadata: Metadata) -> None:
        self.path = target.path
        self._threads = threads
        self._target = target
        self._user = user
        self._metadata = metadata
        self._descriptor = -1
        self._is_new = False
        self._pending = bytearray()

    async def __aenter__(self) -> Self:
        """Raises: AgentError."""
        await self._threads.run(self._begin)
        return self

    async def write(self, data: bytes) -> None:
        """Raises: NoSpaceLeft, AgentError."""
        self._pending += data
        if len(self._pending) >= _PIECE:
            await self._flush()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                await self._flush()
        except BaseException:
            kind = True
            raise
        finally:
            await self._threads.run(self._end, is_whole=kind is None)

    async def _flush(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            await self._threads.run(self._write_all, pending)

    def _begin(self) -> None:
        with self._target.lock:
            self._open()
            self._target.uploads += 1
            if self._is_new:
                self._target.is_unfinished = True

    def _open(self) -> None:
        with os_errors_mapped(self.path):
            make_directories(os.path.dirname(self.path), self._user)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            try:
                self._descriptor = os.open(self.path, flags | os.O_EXCL, 0o644)
                self._is_new = True
            except FileExistsError:
                self._descriptor = os.open(self.path, flags, 0o644)
            try:
                status = os.fstat(self._descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise InvalidArgument(f"path '{self.path}' is not a regular file")
                if (status.st_uid, status.st_gid) != (self._user.uid, self._user.gid):
                    os.fchown(self._descriptor, self._user.uid, self._user.gid)
                if status.st_size:
                    os.ftruncate(self._descriptor, 0)
                replace_metadata(self._descriptor, self._metadata)
            except BaseException:
                os.close(self._descriptor)
                if self._is_new:
                    os.unlink(self.path)
                raise

    def _write_all(self, data: bytearray) -> None:
        with os_errors_mapped(self.path), memoryview(data) as view:
            written = 0
            while written < len(view):
                written += os.write(self._descriptor, view[written:])

    def _end(self, *, is_whole: bool) -> None:
        with self._target.lock:
            self._target.uploads -= 1
            try:
                if is_whole:
                    self._target.is_unfinished = False
                elif self._target.is_unfinished and self._target.uploads == 0:
                    self._target.is_unfinished = False
                    with os_errors_mapped(self.path):
                        os.unlink(self.path)
            finally:
                os.close(self._descriptor)
