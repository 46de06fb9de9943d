"""Whether a control plane answers at all, before a command retries while it does not."""

from __future__ import annotations

from llama_deploy.client import Client
from llama_deploy.client.aio.server_api import ANYTHING
from llama_deploy.errors import LlamaDeployError, UnavailableError, WrongServerError
from llama_deploy.web.http_exchange import HttpRequest


async def check_control_plane(client: Client) -> None:
    """Ask the control plane once, so that a wrong URL is reported at once.

    Raises:
        UnavailableError: It does not respond.
        WrongServerError: It is another server.
    """
    try:
        await client.core.api.call(HttpRequest("GET", "/queue_config"), ANYTHING)
    except (UnavailableError, WrongServerError):
        raise
    except LlamaDeployError:
        pass  # it responds; the command reports what it is told itself
