"""What the contract tells about a file: EntryInfo, in its JSON form."""

import contextlib
import grp
import os
import pwd
import stat
import time
from typing import Any

from sandgate_agent.files.metadata import read_metadata

Entry = dict[str, Any]

_SPECIAL_LETTERS = (
    # Those of Go's fs.FileMode.String, in its order, because that is how E2B's SDKs have always shown them.
    (stat.S_ISDIR, "d"),
    (stat.S_ISLNK, "L"),
    (lambda mode: stat.S_ISBLK(mode) or stat.S_ISCHR(mode), "D"),
    (stat.S_ISFIFO, "p"),
    (stat.S_ISSOCK, "S"),
    (lambda mode: bool(mode & stat.S_ISUID), "u"),
    (lambda mode: bool(mode & stat.S_ISGID), "g"),
    (stat.S_ISCHR, "c"),
    (lambda mode: bool(mode & stat.S_ISVTX), "t"),
)


def read_entry(path: str) -> Entry:
    """Facts about an absolute path. Of a link type, mode and size are its target's, if there is one.

    Raises: OSError, e.g. when the path does not exist.
    """
    own = os.lstat(path)
    target = own
    is_link = stat.S_ISLNK(own.st_mode)
    if is_link:
        with contextlib.suppress(OSError):
            target = os.stat(path)
    entry: Entry = {
        "name": as_text(os.path.basename(path)),
        "type": "FILE_TYPE_DIRECTORY" if stat.S_ISDIR(target.st_mode) else "FILE_TYPE_FILE",
        "path": as_text(path),
        "size": str(target.st_size),
        "mode": stat.S_IMODE(target.st_mode) & 0o777,
        "permissions": format_permissions(own.st_mode),
        "owner": _user_name(target.st_uid),
        "group": _group_name(target.st_gid),
        "modifiedTime": _format_time(target.st_mtime_ns),
    }
    if is_link:
        entry["symlinkTarget"] = as_text(os.path.realpath(path))
    if metadata := read_metadata(path):
        entry["metadata"] = metadata
    return entry


def list_entries(root: str, depth: int) -> list[Entry]:
    """What is below a directory, its own entry left out: parents before children, names in order, links not followed.

    Raises: OSError when the directory itself cannot be read; what vanishes meanwhile is left out.
    """
    entries: list[Entry] = []
    # Not by recursion: a tree can be deeper than Python's stack.
    waiting = [(child, 1) for child in _children_from_last(root)]
    while waiting:
        child, level = waiting.pop()
        try:
            entries.append(read_entry(child.path))
            if level < depth and child.is_dir(follow_symlinks=False):
                waiting += [(below, level + 1) for below in _children_from_last(child.path)]
        except OSError:
            continue
    return entries


def _children_from_last(directory: str) -> "list[os.DirEntry[str]]":
    with os.scandir(directory) as found:
        return sorted(found, key=lambda child: child.name, reverse=True)


def format_permissions(mode: int) -> str:
    """As Go's fs.FileMode: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`."""
    letters = "".join(letter for applies, letter in _SPECIAL_LETTERS if applies(mode))
    bits = "".join(letter if mode & (0o400 >> place) else "-" for place, letter in enumerate("rwxrwxrwx"))
    return (letters or "-") + bits


def as_text(name: str) -> str:
    """A name that is not UTF-8 cannot be put into JSON as it is."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _format_time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"
