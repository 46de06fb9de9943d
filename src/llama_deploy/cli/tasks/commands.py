"""The commands of `llamactl tasks` that find, show and follow tasks."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports happen when a command runs
from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.options import AsJson
from llama_deploy.cli.shared_options import CommandGroup

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The id of the task.")]
_MAX_PAGE = 1000


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is not a time; use one such as 2026-05-01, 2026-05-01T12:30 or 2026-05-01T12:30Z"
        ) from exc


Time = Annotated[
    datetime | None,
    typer.Option(metavar="TIME", parser=_time, help="In ISO 8601; without a zone, it is local."),
]


tasks = CommandGroup(help="Find, show, follow, change and retry tasks.", no_args_is_help=True)


@tasks.command("list")
def list_(  # noqa: PLR0913, PLR0917 - typer
    context: typer.Context,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help="Tasks with this status; repeat it for several."),
    ] = None,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="The service to which they were submitted.")
    ] = None,
    session: Annotated[str | None, typer.Option(metavar="ID", help="The id of their session.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Tasks with all of these; repeat it.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="TASK", help="Tasks that the steps of this one have submitted.")
    ] = None,
    created_after: Time = None,
    created_before: Time = None,
    prefix: Annotated[
        str | None, typer.Option("--id", metavar="PREFIX", help="With what their id begins.")
    ] = None,
    oldest: Annotated[bool, typer.Option("--oldest", help="Show the oldest first.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=_MAX_PAGE, metavar="N", help="How many tasks to show.")
    ] = 50,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where an earlier list has ended.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all tasks, not only --limit.")] = False,
    as_json: AsJson = False,
) -> None:
    """List tasks, the newest first.

    With --json, a line has the `items` of a page and its `next_cursor`.
    """
    from llama_deploy.cli.tasks.listing import ListOptions, list_tasks

    conditions = {
        "status": status,
        "service": service,
        "session": session,
        "tag": tag,
        "parent": parent,
        "created_after": created_after,
        "created_before": created_before,
        "q": prefix,
        "order": "oldest" if oldest else None,
    }
    options = ListOptions(conditions, limit=limit, cursor=cursor, everything=everything, as_json=as_json)
    with_client(context.obj, lambda client: list_tasks(client, options))


@tasks.command()
def show(context: typer.Context, task: TaskId, as_json: AsJson = False) -> None:
    """Show all that is known of a task.

    What it does or waits for, its steps, its attempts and its error.
    """
    from llama_deploy.cli.tasks.listing import show_task

    with_client(context.obj, lambda client: show_task(client, task, as_json=as_json))


@tasks.command()
def count(
    context: typer.Context,
    by: Annotated[
        str, typer.Option(metavar="NAMES", help="`status`, `service`, or both with a comma.")
    ] = "status,service",
    as_json: AsJson = False,
) -> None:
    """Count tasks by status and service."""
    from llama_deploy.cli.tasks.listing import count_tasks

    with_client(context.obj, lambda client: count_tasks(client, by=by, as_json=as_json))


@tasks.command()
def events(
    context: typer.Context,
    task: TaskId,
    after: Annotated[
        int, typer.Option(min=-1, metavar="INDEX", help="Only events whose index is greater.")
    ] = -1,
    as_json: AsJson = False,
) -> None:
    """Print the events of a task as they arrive, until it ends."""
    from llama_deploy.cli.tasks.following import print_events

    with_client(context.obj, lambda client: print_events(client, task, after=after, as_json=as_json))


@tasks.command()
def wait(context: typer.Context, task: TaskId, as_json: AsJson = False) -> None:
    """Wait for the end of a task, and print its result. Ctrl-C does not cancel it.

    Exit codes: 0 the task succeeded, 1 it failed, 3 it does not exist, 124 timeout.
    """
    from llama_deploy.cli.tasks.following import wait_for_task

    sys.exit(with_client(context.obj, lambda client: wait_for_task(client, task, as_json=as_json)))
