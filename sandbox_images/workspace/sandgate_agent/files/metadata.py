"""What callers attach to a file: extended attributes `user.e2b.<key>` (xattr(7)).

File systems without user attributes (tmpfs before Linux 6.6) keep nothing of their own; the agent remembers for them.
"""

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Mapping

from sandgate_agent.errors import InvalidArgument

_ATTRIBUTE_PREFIX = "user.e2b."
_HEADER_PREFIX = "x-metadata-"
_REMEMBERED_FILES = 4096

Metadata = dict[str, str]

_remembered: OrderedDict[tuple[int, int], Metadata] = OrderedDict()
"""By device and inode, for the file systems that cannot; the least recently written is forgotten first."""


def metadata_in_headers(headers: Mapping[str, str]) -> Metadata:
    """The X-Metadata-<Key> headers, keys in lower case; one without a key says nothing, as in E2B's agent."""
    return {
        name.removeprefix(_HEADER_PREFIX): value.encode("latin-1").decode("utf-8", errors="replace")
        for name, value in headers.items()
        if name.startswith(_HEADER_PREFIX) and name != _HEADER_PREFIX
    }


def replace_metadata(file: int, metadata: Metadata) -> None:
    """Make this the whole metadata of an open file. Raises: InvalidArgument when it does not fit, OSError."""
    _remembered.pop(_identity(file), None)
    try:
        for name in os.listxattr(file):
            if name.startswith(_ATTRIBUTE_PREFIX) and name.removeprefix(_ATTRIBUTE_PREFIX) not in metadata:
                os.removexattr(file, name)
        for key, value in metadata.items():
            os.setxattr(file, _ATTRIBUTE_PREFIX + key, value.encode())
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            _remember(file, metadata)
        elif error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
            # The attributes of a file share one block; that the disk is full would show at the content.
            raise InvalidArgument("the metadata is too large for the file system") from error
        else:
            raise


def read_metadata(path: str) -> Metadata:
    """Empty where it cannot be read."""
    metadata = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith(_ATTRIBUTE_PREFIX):
                value = os.getxattr(path, name)
                key = os.fsencode(name.removeprefix(_ATTRIBUTE_PREFIX)).decode("utf-8", errors="replace")
                metadata[key] = value.decode("utf-8", errors="replace")
    if not metadata and _remembered:
        with contextlib.suppress(OSError):
            metadata = dict(_remembered.get(_identity(path), {}))
    return metadata


def _identity(file: int | str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _remember(file: int, metadata: Metadata) -> None:
    if metadata:
        _remembered[_identity(file)] = metadata
    while len(_remembered) > _REMEMBERED_FILES:
        _remembered.popitem(last=False)
