"""`sandgate`: the server by itself where nothing else is asked for, the command line for all the rest.

What a process loads stays in memory for as long as it lives, so the server loads nothing of the command line, and
nothing that only the command line has a use for.
"""

from __future__ import annotations

import os
import sys

from app.errors import SandgateError

_BEFORE_THE_START = {
    # Threads that wait for the engine and the database would each keep a heap of their own (mallopt(3), M_ARENA_MAX).
    "MALLOC_ARENA_MAX": "2",
    # Columns of every instruction, for the marks under lines of tracebacks.
    "PYTHONNODEBUGRANGES": "1",
}
"""What a process has to be started with; together 4 MB of a server's memory. Others may be set from outside."""


def main() -> None:
    if sys.argv[1:] != ["serve"]:
        from app.cli import main as command_line  # noqa: PLC0415 - see above

        command_line()
        return
    if not _BEFORE_THE_START.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**_BEFORE_THE_START, **os.environ})
    # The log's renderer for terminals would load it, 3 MB, for coloured tracebacks, which this process never prints.
    sys.modules["rich"] = None  # type: ignore[assignment]  # it is found to be absent then, says the import system
    from app.serving import serve  # noqa: PLC0415 - see above

    try:
        serve()
    except SandgateError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(1)  # uvicorn raises it once more after everything was ended in order


if __name__ == "__main__":
    main()
