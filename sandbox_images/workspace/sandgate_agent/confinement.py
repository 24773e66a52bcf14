"""Shutting the process into a directory: no path, and no link that somebody left in it, leads out from then on."""

import os
import sys
import tokenize  # noqa: F401 - what a traceback is printed with is imported when the first one is
from importlib.machinery import PathFinder


def confine_to(root: str) -> None:
    """For the rest of the process's life. Raises: OSError without the right to (CAP_SYS_CHROOT).

    Nothing can be imported any more: modules would be looked for below the new root, among somebody else's files.
    Threads of their own root would not need this, but unshare(2) is not to be had in a container.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not PathFinder]
    os.chroot(root)
    os.chdir("/")
