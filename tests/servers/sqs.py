"""A service that is compatible with Amazon SQS, from the package `moto[server]`. It keeps all in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.servers.process import HOST, ServerProcess, inside, missing_package

_ROOT: Final = Path(__file__).parents[2]


class SqsServer(ServerProcess):
    """One server. It knows nothing of before it was killed.

    Args:
        folder: Where its log is written.
    """

    patience_seconds: ClassVar[float] = 60.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.endpoint_url = f"http://{HOST}:{self.port}"
        self.url = f"aws+{self.endpoint_url}?region=us-east-1"

    def _command(self) -> list[str]:
        need_moto()
        return [sys.executable, "-m", "tests.servers.moto_program", str(self.port)]

    def _options(self) -> dict[str, Any]:
        return {"cwd": _ROOT}


def need_moto() -> None:
    """Go on if moto is installed."""
    if inside("moto", "server.py") is None:
        missing_package("moto", "moto")
