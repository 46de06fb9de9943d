"""What the tests of a state store start from."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import ClassVar, Final

import pytest
import pytest_asyncio

from llama_deploy.state_stores.base import StateStore

_LOOK_EVERY_SECONDS: Final = 0.005


@pytest.mark.asyncio
class StoreTests:
    """Tests of a state store, which a backend names."""

    store_type: ClassVar[type[StateStore]]
    outlives_close: ClassVar[bool] = True
    """Whether what was stored is there after the store was closed and opened again."""

    @pytest.fixture
    def uri(self) -> str:
        """Return the address of an empty store; the same within a test."""
        raise NotImplementedError("override the fixture `uri`")

    def wait_in_work(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        """Wait within a function that runs in a transaction; return whether the condition came to hold.

        For a store that runs the function in a thread of its own. One that runs it in a greenlet of the loop
        has to let the loop go on meanwhile.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_EVERY_SECONDS)
        return True

    @pytest_asyncio.fixture
    async def store(self, uri: str) -> AsyncIterator[StateStore]:
        """Return an open, empty store."""
        async with await self.store_type.connect(uri) as store:
            yield store
