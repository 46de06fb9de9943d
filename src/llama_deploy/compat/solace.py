"""Solace, which 0.6 had as a message queue and this release does not have."""

from __future__ import annotations

from typing import Any, NoReturn

from llama_deploy.errors import ConfigError
from llama_deploy.renamed import see


class _NotThere:
    """Raises when it is created, so that programs that only import the name run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse(*args, **kwargs)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ConfigError(
        "there is no message queue over Solace; use another broker, or write a backend:"
        f" docs/how-to/custom-queue.md; {see('Solace')}"
    )


class SolaceMessageQueueConfig(_NotThere):
    """Raises `ConfigError` when it is created."""


class SolaceMessageQueue(_NotThere):
    """Raises `ConfigError` when it is created."""
