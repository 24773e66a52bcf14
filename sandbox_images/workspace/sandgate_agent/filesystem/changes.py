"""Changing the tree of files. All of it blocks, and raises AgentError in the caller's words."""

import contextlib
import errno
import os
import shutil
import stat

from sandgate_agent.errors import AlreadyExists, InvalidArgument, os_errors_mapped
from sandgate_agent.paths import make_directories
from sandgate_agent.users import User


def make_directory(path: str, owner: User) -> None:
    """With the parents that are missing, mode 0755. Raises: AlreadyExists, InvalidArgument."""
    with os_errors_mapped(path):
        if os.path.isdir(path):
            raise AlreadyExists(f"directory '{path}' already exists")
        if os.path.lexists(path):
            raise InvalidArgument(f"path '{path}' already exists and is not a directory")
        make_directories(path, owner)


def move(source: str, destination: str, owner: User) -> None:
    """Rename, over what is there; directories that have to be made for it are the owner's.

    Raises: NotFound, InvalidArgument.
    """
    with os_errors_mapped(source):
        os.lstat(source)
    with os_errors_mapped(destination):
        make_directories(os.path.dirname(destination), owner)
        try:
            os.rename(source, destination)
        except OSError as error:
            # To another file system, or a directory that still belongs to the image.
            if error.errno != errno.EXDEV:
                raise
            if os.path.isdir(destination):
                raise InvalidArgument(f"path '{destination}' is a directory") from error
            _copy(source, destination)
            remove(source)


def remove(path: str) -> None:
    """With everything below it. Safe to repeat. Raises: InvalidArgument."""
    with os_errors_mapped(path), contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _copy(source: str, destination: str) -> None:
    """With owners and modes, which the standard library's functions leave to whoever copies."""
    if not stat.S_ISDIR(os.lstat(source).st_mode):
        shutil.copy2(source, destination, follow_symlinks=False)
        _copy_owner(source, destination)
        return
    shutil.copytree(source, destination, symlinks=True)
    _copy_owner(source, destination)
    for directory, directories, files in os.walk(source):
        copied = os.path.join(destination, os.path.relpath(directory, source))
        for name in (*directories, *files):
            _copy_owner(os.path.join(directory, name), os.path.join(copied, name))


def _copy_owner(source: str, destination: str) -> None:
    status = os.lstat(source)
    os.chown(destination, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(destination, stat.S_IMODE(status.st_mode))  # a new owner takes set-user-id and the like away
