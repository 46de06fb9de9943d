"""Waiting for conditions."""

from __future__ import annotations

import pytest

from llama_deploy.testing.conditions import eventually


class Third:
    """Holds when it is looked at the third time."""

    def __init__(self) -> None:
        self.looks = 0

    def plain(self) -> int:
        self.looks += 1
        return self.looks if self.looks >= 3 else 0

    async def waiting(self) -> int:
        return self.plain()


async def test_what_came_to_hold_is_returned() -> None:
    assert await eventually(Third().plain) == 3
    assert await eventually(Third().waiting) == 3


async def test_what_does_not_come_to_hold_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        await eventually(lambda: False, seconds=0.03)
