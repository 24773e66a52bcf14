"""uvicorn's server without its command line.

Importing any part of uvicorn imports the whole of its command line: click, the reloader, multiprocessing. That is 4 MB
of memory in every idle sandbox for something the agent never calls, so a module without content stands in its place.
"""

import sys
from types import ModuleType

if "uvicorn.main" not in sys.modules:
    _no_command_line = ModuleType("uvicorn.main")
    for name in "Server", "main", "run":
        setattr(_no_command_line, name, None)
    sys.modules["uvicorn.main"] = _no_command_line

from uvicorn.config import Config
from uvicorn.server import Server

__all__ = ["Config", "Server"]
