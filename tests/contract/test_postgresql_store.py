from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

import pytest
from sqlalchemy.util import await_only

from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.postgresql import PostgreSQLStateStore
from llama_deploy.testing.state_store_suite import StateStoreContract


class TestPostgreSQL(StateStoreContract):
    store_type: ClassVar[type[StateStore]] = PostgreSQLStateStore

    @pytest.fixture
    def uri(self, postgresql_uri: str) -> str:
        return postgresql_uri

    def wait_in_work(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            await_only(asyncio.sleep(0.01))
        return True
