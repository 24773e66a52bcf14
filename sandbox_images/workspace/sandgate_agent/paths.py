"""How a caller's path becomes an absolute one, and how there comes to be a directory for it."""

import errno
import os

from sandgate_agent.errors import InvalidArgument
from sandgate_agent.users import User


def resolve_path(path: str, user: User) -> str:
    """Absolute and normalised; relative paths and `~` start at the user's home. Raises: InvalidArgument."""
    if "\0" in path:
        raise InvalidArgument("a path may not contain a NUL character")
    if path == "~" or path.startswith("~/"):
        path = user.home + path[1:]
    return os.path.normpath(os.path.join(user.home, path))


def make_parents(path: str) -> None:
    """Make the directories above a path that are missing, mode 0755. Safe to repeat. Raises: OSError."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from error
