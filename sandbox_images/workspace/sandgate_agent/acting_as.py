"""File work as another user, in threads, so that the event loop never waits for a disk.

Linux keeps a file-system identity (fsuid, fsgid, supplementary groups) per *thread*; only the C library makes a
process look like one unit. setfsuid(2) and setfsgid(2) are not broadcast by it, setgroups(2) is, so that one is called
raw. With an fsuid other than 0 the kernel also takes away the capabilities that override file permissions
(capabilities(7), "Effect of user ID changes on capabilities"), so checks are those the user would meet, without a fork.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from sandgate_agent.users import User

P = ParamSpec("P")
T = TypeVar("T")

_SETGROUPS_NUMBER = {"x86_64": 116, "aarch64": 159}[os.uname().machine]

_libc = ctypes.CDLL(None, use_errno=True)


def _set_groups_of_this_thread(groups: tuple[int, ...]) -> None:
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(ctypes.c_long(_SETGROUPS_NUMBER), ctypes.c_size_t(len(groups)), array) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _set_file_system_ids_of_this_thread(uid: int, gid: int) -> None:
    _libc.setfsgid(ctypes.c_uint32(gid))
    _libc.setfsuid(ctypes.c_uint32(uid))
    # Both answer the previous id and never an error: asking once more, with an impossible id, tells what is in force.
    if _libc.setfsuid(ctypes.c_uint32(0xFFFFFFFF)) != uid or _libc.setfsgid(ctypes.c_uint32(0xFFFFFFFF)) != gid:
        raise PermissionError("the agent may not act as another user")


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Give the calling thread the user's rights on files. Not for the main thread: it must stay root."""
    own_groups = tuple(os.getgroups())
    try:
        _set_groups_of_this_thread(user.groups)
        _set_file_system_ids_of_this_thread(user.uid, user.gid)
        yield
    finally:
        _set_file_system_ids_of_this_thread(os.geteuid(), os.getegid())
        _set_groups_of_this_thread(own_groups)


class FileThreads:
    """A bounded pool of threads for everything that may wait for a file system."""

    def __init__(self, size: int = 16) -> None:
        self._executor = ThreadPoolExecutor(max_workers=size, thread_name_prefix="files")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run with the agent's own rights."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def run_as(self, user: User, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run with the user's rights on files."""

        def work() -> T:
            with acting_as(user):
                return function(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
