"""Where in a workspace a volume may be mounted. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from app.errors import InvalidRequest

_TAKEN = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/sandgate",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib",
)
"""What the workspace itself stands on: nothing may hide these, and nothing below them belongs to a caller."""
_OPEN_BELOW = ("/usr/local", "/usr/share", "/usr/src")
"""Inside them and still the caller's."""
_MOST_MOUNTS = 32
_LONGEST_PATH = 1024


def check_mount_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths, normalised. Raises: InvalidRequest for one that cannot be used, or is used twice."""
    if len(paths) > _MOST_MOUNTS:
        raise InvalidRequest(f"volumeMounts: a sandbox has at most {_MOST_MOUNTS} volumes.")
    checked: list[str] = []
    for path in paths:
        normal = _normalised(path)
        if normal in checked:
            raise InvalidRequest(f"volumeMounts: two volumes are to be mounted at {normal}.")
        checked.append(normal)
    return tuple(checked)


def _normalised(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise InvalidRequest(f"volumeMounts: {path!r} is not an absolute path without '..', such as /data.")
    if len(path) > _LONGEST_PATH or any(ord(letter) < 32 or letter in ":\x7f" for letter in path):
        raise InvalidRequest(
            f"volumeMounts: a path has at most {_LONGEST_PATH} characters, and no colon or control character."
        )
    normal = "/" + posixpath.normpath(path).lstrip("/")
    hidden = [taken for taken in _TAKEN if _is_within(taken, normal)]
    inside = [taken for taken in _TAKEN if _is_within(normal, taken)]
    if normal == "/" or hidden or (inside and not any(_is_below(normal, open_) for open_ in _OPEN_BELOW)):
        raise InvalidRequest(f"volumeMounts: {normal} belongs to the sandbox itself; mount at /data or /mnt/data, say.")
    return normal


def _is_within(path: str, directory: str) -> bool:
    return path == directory or _is_below(path, directory)


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
