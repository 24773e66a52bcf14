"""How a caller's path becomes an absolute one, and how there comes to be a directory for it."""

import errno
import os

from sandgate_agent.errors import InvalidArgument
from sandgate_agent.users import User

_PATH_MAX = 4096
"""Bytes of a path that the kernel takes, its end included (limits.h)."""


def resolve_path(path: str, user: User) -> str:
    """Absolute and normalised; relative paths, `~` and the empty path start at the home. Raises: InvalidArgument."""
    if "\0" in path:
        raise InvalidArgument("a path may not contain a NUL character")
    if path.startswith("~"):
        if path[1:2] not in ("", "/"):
            raise InvalidArgument(f"path '{path}': only the user's own home can be named with '~'")
        path = user.home + path[1:]
    # POSIX gives a path that begins with exactly two slashes a meaning of its own, which Linux does not use.
    absolute = "/" + os.path.normpath(os.path.join(user.home, path)).lstrip("/")
    if len(os.fsencode(absolute)) >= _PATH_MAX:
        raise InvalidArgument(f"the path is longer than {_PATH_MAX - 1} bytes")
    return absolute


def make_directories(path: str, owner: User) -> None:
    """Make what is missing of a directory and those above it, mode 0755, and give it to the owner. Safe to repeat.

    Raises: OSError, e.g. when a part of the path is there and no directory.
    """
    missing = []
    while not os.path.isdir(path):
        if os.path.lexists(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            continue  # somebody else was quicker, and owns it
        os.chown(directory, owner.uid, owner.gid)
