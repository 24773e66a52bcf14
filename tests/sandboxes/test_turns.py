"""A few go on at a time; whoever would wait for too long is told so, and takes nobody's turn."""

from __future__ import annotations

import pytest

from app.errors import TooBusy
from app.sandboxes.turns import Turns


async def test_who_waits_too_long_is_sent_away() -> None:
    turns = Turns(at_once=2, within_s=0.01)
    async with turns.turn(), turns.turn():
        for _ in range(3):
            with pytest.raises(TooBusy, match="Try again later"):
                async with turns.turn():
                    raise AssertionError("more at once than there may be")
    async with turns.turn(), turns.turn():
        pass
