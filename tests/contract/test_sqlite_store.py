from __future__ import annotations

from pathlib import Path

import pytest

from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.state_store_suite import StateStoreContract


class TestSQLiteFile(StateStoreContract):
    store_type = SQLiteStateStore

    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/folder/control_plane.db"


class TestSQLiteInMemory(StateStoreContract):
    store_type = SQLiteStateStore
    outlives_close = False

    @pytest.fixture
    def uri(self) -> str:
        return "sqlite:///:memory:"
