"""Wait for a control plane that is not running yet."""

from __future__ import annotations

from typing import Final

from llama_deploy.cli.error_messages import print_hint
from llama_deploy.cli.output import note
from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.errors import LlamaDeployError, UnavailableError, WrongServerError
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest, reason_of
from llama_deploy.web.shown_url import shown_url

_BACKOFF: Final = Backoff(first=0.05, longest=1.0)


async def wait_for_control_plane(settings: ConnectionSettings) -> None:
    """Wait until a server responds at the URL; after the first failure, print what is waited for.

    Raises:
        WrongServerError: The server says that it is none.
    """
    connection = HttpConnection(settings)

    async def respond() -> None:
        try:
            await connection.request(HttpRequest("GET", "/queue_config"))
        except (UnavailableError, WrongServerError):
            raise
        except LlamaDeployError:
            pass  # it responds; who connects to the queue reports the error

    def print_what_is_missing(exc: LlamaDeployError) -> None:
        reason = str(exc) if exc.__cause__ is None else reason_of(exc.__cause__)
        note(f"Waiting for a control plane at {' or '.join(map(shown_url, settings.urls))}: {reason}")
        print_hint("start one with `llamactl serve`, or pass another URL: llamactl -s URL worker ...")

    outage = Outage(on_start=print_what_is_missing, on_end=lambda: None)
    try:
        await retry(respond, backoff=_BACKOFF, outage=outage)
    finally:
        await connection.close()
