"""Commands that ask a control plane."""

# ruff: noqa: PLC0415 - importing the client takes long, and a command may fail before it
from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from llama_deploy.cli.error_messages import print_error, reported
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.options import Settings
from llama_deploy.errors import TaskTimeoutError

if TYPE_CHECKING:
    from llama_deploy.client import Client

T = TypeVar("T")

_DEFAULT_TIMEOUT: Final = 120.0
"""Seconds after which a command gives up if the control plane does not respond."""


def with_client(settings: Settings, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a client for at most `settings.timeout`; an error is printed and ends the process."""
    from llama_deploy.cli.environment import settings_of
    from llama_deploy.cli.first_contact import check_control_plane
    from llama_deploy.client import Client, ClientSettings

    async def work_with_client() -> T:
        with settings_of(ClientSettings):
            client = Client(
                settings.servers,
                disable_ssl=settings.insecure,
                timeout=settings.timeout or _DEFAULT_TIMEOUT,
            )
        async with client:
            try:
                async with asyncio.timeout(settings.timeout):
                    await check_control_plane(client)
                    return await work(client)
            except TimeoutError as exc:
                raise TaskTimeoutError(f"the command did not finish within {settings.timeout:g} s") from exc

    settings.logs(level=logging.WARNING)
    with reported(settings, servers=settings.servers):
        try:
            return asyncio.run(work_with_client())
        except (KeyboardInterrupt, asyncio.CancelledError):
            print_error("interrupted")
            sys.exit(ExitCode.INTERRUPTED)
