"""What the tests of a state store start from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
import pytest_asyncio

from llama_deploy.state_stores.base import StateStore


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

    @pytest_asyncio.fixture
    async def store(self, uri: str) -> AsyncIterator[StateStore]:
        """Return an open, empty store."""
        async with await self.store_type.connect(uri) as store:
            yield store
