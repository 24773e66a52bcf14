"""Changing the tree of files. All of it blocks, and raises AgentError in the caller's words."""

import contextlib
import errno
import os
import shutil
import stat

from sandgate_agent.errors import AlreadyExists, InvalidArgument, os_errors_mapped
from sandgate_agent.paths import make_parents


def make_directory(path: str) -> None:
    """With the parents that are missing, mode 0755. Raises: AlreadyExists, InvalidArgument, PermissionDenied."""
    with os_errors_mapped(path):
        make_parents(path)
        try:
            os.mkdir(path, 0o755)
        except FileExistsError as error:
            if os.path.isdir(path):
                raise AlreadyExists(f"directory '{path}' already exists") from error
            raise InvalidArgument(f"path '{path}' already exists and is not a directory") from error


def move(source: str, destination: str) -> None:
    """Rename, over what is there. Raises: NotFound, InvalidArgument, PermissionDenied."""
    with os_errors_mapped(source):
        os.lstat(source)
    with os_errors_mapped(destination):
        make_parents(destination)
        try:
            os.rename(source, destination)
        except OSError as error:
            # To another file system, or a directory that still belongs to the image.
            if error.errno != errno.EXDEV:
                raise
            if os.path.isdir(destination):
                raise InvalidArgument(f"path '{destination}' is a directory") from error
            shutil.move(source, destination)


def remove(path: str) -> None:
    """With everything below it. Safe to repeat. Raises: InvalidArgument, PermissionDenied."""
    with os_errors_mapped(path), contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
