"""The package registry that pip is made for stands for the internet: programs for a pod that look for it."""

from __future__ import annotations

import textwrap

NAME = "from pip._internal.models.index import PyPI; print(PyPI.netloc)"
RESOLVE = "import socket; from pip._internal.models.index import PyPI; socket.gethostbyname(PyPI.netloc)"
CONNECT = """
import socket, ssl, sys
from pip._internal.models.index import PyPI
address, port = sys.argv[1:] or (PyPI.netloc, "443")
connection = socket.create_connection((address, int(port)), timeout=20)
ssl.create_default_context().wrap_socket(connection, server_hostname=PyPI.netloc).close()
"""
"""With TLS; to the address and the port that are its arguments, if there are any."""


def patiently(program: str) -> str:
    """It has three tries: the registry may be slow to answer once. Not where it must fail, which takes 10 s a try."""
    return f"""
import time
for tries_left in (2, 1, 0):
    try:
{textwrap.indent(program, " " * 8)}
        break
    except OSError:
        if not tries_left:
            raise
        time.sleep(1)
"""
