"""How much of what nobody asked for a server may send before its output is left unread for a while."""

import time
from collections.abc import Callable

RATE = 1024 * 1024
"""Cost per second that is always granted."""

BURST = 4 * RATE

MESSAGE_COST = 1024
"""Of one message besides its bytes: many small ones cost more to handle than few large ones."""

STRAY_COST = 128
"""The same of a line that is no message."""


class Allowance:
    """A token bucket. What is left unread fills the pipe, and then it is the server that waits."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._left: float = BURST
        self._counted_at = now()

    def spend(self, cost: int) -> float:
        """Seconds to wait before anything more is read; 0 while the allowance lasts."""
        now = self._now()
        self._left = min(BURST, self._left + (now - self._counted_at) * RATE) - cost
        self._counted_at = now
        return max(0.0, -self._left / RATE)
