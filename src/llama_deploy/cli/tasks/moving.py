"""`llamactl tasks`."""

from __future__ import annotations

from typing import Literal

import typer

from llama_deploy.cli.options import Origin
from llama_deploy.client import Client
from llama_deploy.printable import printable


async def move_task(client: Client, task_id: str, *, to: str, origin: Origin, as_json: bool) -> None:
    """Move a task to a version of its service, and print its status.

    Raises:
        TaskNotFoundError: The task does not exist.
        VersionNotFoundError: No living instance has this version.
        ConflictError: The task cannot be moved, or its run does not fit the version.
        InvalidRequestError: The version is ambiguous or too short.
    """
    place: Literal["journal", "start"] = "start" if origin is Origin.START else "journal"
    view = await client.task(task_id).move(to, origin=place)
    told = f"Moved task {view.task_id} to version {to}; it is {view.status.value}."
    typer.echo(view.model_dump_json() if as_json else printable(told))
