"""uvicorn's server without its command line and its log formats.

Importing any part of uvicorn imports the whole of its command line (click, the reloader, multiprocessing) and the
standard library's configuration of logging (a socket server among it). That is 5 MB of memory in every idle sandbox for
something the gateway never calls, so modules without content stand in their places.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _standing_in(name: str, **content: object) -> Iterator[None]:
    """Nothing is replaced that has been imported already; afterwards the module can be imported as ever."""
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)
    vars(stand_in).update(content)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


with _standing_in("logging.config"), _standing_in("uvicorn.main", Server=None, main=None, run=None):
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import Server

__all__ = ["Config", "HttpToolsProtocol", "Server"]
