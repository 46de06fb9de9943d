"""`llamactl status`."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator

import typer
from rich.table import Table
from rich.text import Text

from llama_deploy.cli.console import OutputConsole
from llama_deploy.client import Client, Service
from llama_deploy.printable import printable
from llama_deploy.types import BlockedStep


async def print_status(client: Client, *, after: str, limit: int, as_json: bool) -> None:
    """Print services, how many instances of each are alive, and what blocks them.

    Args:
        client: The client.
        after: The name after which the services follow. Empty: from the beginning.
        limit: How many services.
        as_json: Print one JSON object instead.

    Raises:
        UnavailableError: The control plane does not respond.
    """
    # One more than is shown tells whether there are more.
    page = await client.core.services.page(after=after, limit=limit + 1)
    services = page[:limit]
    next_after = services[-1].service_name if len(page) > limit else None
    if as_json:
        facts = {
            "control_plane_url": client.control_plane_url,
            "services": [
                {
                    "service_name": service.service_name,
                    "description": service.description,
                    "instances_alive": service.count_alive(),
                    "versions": _versions(service),
                    "stranded": [stranded.model_dump(mode="json") for stranded in service.stranded],
                    "blocked": [
                        {"instance_id": instance_id, **blocked.model_dump(mode="json")}
                        for instance_id, blocked in _blocked(service)
                    ],
                }
                for service in services
            ],
            "next_after": next_after,
        }
        typer.echo(json.dumps(facts))
        return
    console = OutputConsole()
    console.print(f"control plane  {client.control_plane_url}\n")
    if not services and after:
        console.print(f"No services follow {printable(after)!r}.")
        return
    if not services:
        console.print("No services are registered. Start one with `llamactl worker WORKFLOW`.")
        return
    table = Table("service", "instances alive", "description", box=None, header_style="dim")
    for service in services:
        alive = service.count_alive()
        style = "green" if alive else "red"
        table.add_row(
            Text(printable(service.service_name)),
            Text(str(alive), style=style),
            Text(printable(service.description)),
        )
    console.print(table)
    for service in services:
        for instance_id, blocked in _blocked(service):
            line = f"instance {instance_id} of {service.service_name} is {blocked}"
            console.print(Text(printable(line), style="yellow"), soft_wrap=True)
        for stranded in service.stranded:
            line = f"{stranded.count} stranded tasks of {service.service_name}: {stranded.reason}"
            console.print(Text(printable(line), style="yellow"), soft_wrap=True)
    if next_after is not None:
        command = shlex.join(["llamactl", "status", "--after", next_after])
        console.print(Text(f"\nThere are more services: {printable(command)}"), soft_wrap=True)


def _versions(service: Service) -> dict[str, int]:
    """Return how many living instances each version has."""
    return dict(
        Counter(each.version for each in service.instances if each.alive and each.version is not None)
    )


def _blocked(service: Service) -> Iterator[tuple[str, BlockedStep]]:
    """Yield what blocks the living instances of a service, each with the id of the instance."""
    for instance in service.instances:
        if instance.alive:
            for blocked in instance.blocked:
                yield instance.instance_id, blocked
