"""`llamactl status`: what a control plane knows."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_deploy.client import Client


async def print_status(client: Client) -> None:
    """Print the services with their living instances, and how many sessions there are.

    Raises:
        UnavailableError: The control plane does not answer.
    """
    services = await client.core.services.list()
    sessions = await client.core.sessions.list()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"control plane  {client.control_plane_url}")
    console.print(f"sessions       {len(sessions)}")
    console.print()
    if not services:
        console.print("no services")
        return
    table = Table("service", "instances alive", "description", box=None, header_style="dim")
    for service in services:
        alive = sum(instance.alive for instance in service.instances)
        style = "green" if alive else "red"
        table.add_row(service.service_name, Text(str(alive), style=style), Text(service.description))
    console.print(table)
