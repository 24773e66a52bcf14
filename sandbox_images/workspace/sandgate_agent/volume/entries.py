"""What is in a volume, in the words of E2B's volume API (VolumeEntryStat), and changes to it. All of it blocks."""

import os
import stat
import time
from dataclasses import dataclass
from typing import Any

from sandgate_agent.errors import AlreadyExists, InvalidArgument, NotFound, os_errors_mapped

Entry = dict[str, Any]

_DIRECTORY_MODE = 0o777
_FILE_MODE = 0o666
"""Open to all, as on E2B: sandboxes that share a volume may run as different users."""

_MOST_ENTRIES = 50_000


@dataclass(frozen=True, slots=True)
class Ownership:
    """What a caller says of a new or changed entry; None leaves it at the default, or as it is."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns what is made without a word about it."""

    uid: int
    gid: int


def read_entry(path: str) -> Entry:
    """Of the path itself, a link not followed. Raises: AgentError."""
    with os_errors_mapped(path):
        status = os.lstat(path)
        entry: Entry = {
            "name": os.path.basename(path) or "/",
            "type": _type(status.st_mode),
            "path": path,
            "size": status.st_size,
            "mode": stat.S_IMODE(status.st_mode),
            "uid": status.st_uid,
            "gid": status.st_gid,
            "atime": _format_time(status.st_atime_ns),
            "mtime": _format_time(status.st_mtime_ns),
            "ctime": _format_time(status.st_ctime_ns),
        }
        if stat.S_ISLNK(status.st_mode):
            entry["target"] = os.readlink(path)
    return {key: _as_text(value) if isinstance(value, str) else value for key, value in entry.items()}


def list_entries(root: str, depth: int) -> list[Entry]:
    """Below a directory: parents before children, names in order, links not followed; what vanishes is left out.

    Raises: AgentError, also for more than 50,000 entries.
    """
    entries: list[Entry] = []
    _collect(root, depth, entries)
    return entries


def _collect(directory: str, depth: int, entries: list[Entry]) -> None:
    try:
        with os_errors_mapped(directory), os.scandir(directory) as found:
            children = sorted(found, key=lambda child: child.name)
    except InvalidArgument as error:
        raise InvalidArgument(f"path '{directory}' is not a directory") from error
    for child in children:
        if len(entries) >= _MOST_ENTRIES:
            raise InvalidArgument(f"there are more than {_MOST_ENTRIES} entries: list with less depth")
        try:
            entries.append(read_entry(child.path))
            if depth > 1 and child.is_dir(follow_symlinks=False):
                _collect(child.path, depth - 1, entries)
        except NotFound:
            continue


def make_directory(path: str, wanted: Ownership, default: Owner, *, with_parents: bool) -> Entry:
    """With parents, one that is there stays as it is. Raises: NotFound (parent), AlreadyExists, InvalidArgument."""
    with os_errors_mapped(path):
        if with_parents:
            make_parents(path, wanted, default)
        try:
            os.mkdir(path)
        except FileExistsError:
            if not with_parents or not os.path.isdir(path):
                raise AlreadyExists(f"path '{path}' already exists") from None
        else:
            set_ownership(path, wanted, default, mode=_DIRECTORY_MODE)
    return read_entry(path)


def make_parents(path: str, wanted: Ownership, default: Owner) -> None:
    """The directories above a path that are missing, open to all. Raises: OSError."""
    parent = os.path.dirname(path)
    if parent == path or os.path.isdir(parent):
        return
    make_parents(parent, wanted, default)
    try:
        os.mkdir(parent)
    except FileExistsError:
        if not os.path.isdir(parent):
            raise NotADirectoryError(parent) from None
    else:
        set_ownership(parent, Ownership(wanted.uid, wanted.gid), default, mode=_DIRECTORY_MODE)


def open_file(path: str, wanted: Ownership, default: Owner, *, force: bool) -> tuple[int, bool]:
    """A descriptor to write with, and whether the file is new. `force` makes parents, and empties one that is there.

    Raises: NotFound (parent), AlreadyExists, InvalidArgument.
    """
    with os_errors_mapped(path):
        if force:
            make_parents(path, wanted, default)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        is_new = True
        try:
            descriptor = os.open(path, flags | os.O_EXCL, 0o600)
        except FileExistsError:
            if not force:
                raise
            is_new = False
            descriptor = os.open(path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidArgument(f"path '{path}' is not a regular file")
            set_ownership(descriptor, wanted, default, mode=_FILE_MODE)
            os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor, is_new


def set_ownership(file: int | str, wanted: Ownership, default: Owner, *, mode: int) -> None:
    """Raises: OSError."""
    # The owner first: changing it takes away set-user-ID bits.
    os.chown(
        file,
        default.uid if wanted.uid is None else wanted.uid,
        default.gid if wanted.gid is None else wanted.gid,
    )
    os.chmod(file, mode if wanted.mode is None else wanted.mode)


def update(path: str, wanted: Ownership) -> Entry:
    """A link is followed, inside the volume. Raises: AgentError."""
    with os_errors_mapped(path):
        if wanted.uid is not None or wanted.gid is not None:
            os.chown(path, -1 if wanted.uid is None else wanted.uid, -1 if wanted.gid is None else wanted.gid)
        if wanted.mode is not None:
            os.chmod(path, wanted.mode)
    return read_entry(path)


def _type(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "symlink"
    return "file" if stat.S_ISREG(mode) else "unknown"


def _as_text(name: str) -> str:
    """A name that is not UTF-8 cannot be put into JSON as it is."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _format_time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1000:06d}Z"
