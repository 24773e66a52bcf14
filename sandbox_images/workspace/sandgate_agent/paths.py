"""How a caller's path becomes an absolute one."""

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
