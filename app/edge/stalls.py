"""Watches what somebody waits for a pod to take, so that one that takes nothing does not hold them for ever."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from fcntl import ioctl
from termios import TIOCOUTQ

STALL_S = 60.0
_INT = struct.Struct("i")


class StallWatch:
    """From a moment when a transport has more to send than it should, until `end`.

    Calls `give_up` once the pod has taken nothing for `stall_s`; one that is slow may take as long as it likes. Only
    who waits is watched: a client's hanging up is not noticed meanwhile, because nothing of it is read.
    """

    def __init__(self, transport: asyncio.WriteTransport, stall_s: float, give_up: Callable[[], None]) -> None:
        self._transport = transport
        self._stall_s = stall_s
        self._give_up = give_up
        self._look_later()

    def end(self) -> None:
        """Safe to repeat."""
        self._timer.cancel()

    def _look_later(self) -> None:
        self._left = _untaken(self._transport)
        self._timer = asyncio.get_running_loop().call_later(self._stall_s, self._look)

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        if _untaken(self._transport) < self._left:
            self._look_later()
        else:
            self._give_up()


def _untaken(transport: asyncio.WriteTransport) -> int:
    """Bytes, with those that the kernel holds (tcp(7), SIOCOUTQ): it lets a transport write again when a third of the
    socket's buffer is free, which is minutes of a slow upload."""
    socket = transport.get_extra_info("socket")
    if socket is None:
        return transport.get_write_buffer_size()
    (in_kernel,) = _INT.unpack(ioctl(socket.fileno(), TIOCOUTQ, bytes(_INT.size)))
    return transport.get_write_buffer_size() + int(in_kernel)
