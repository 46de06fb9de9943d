"""Further commands of `llamactl tasks`: `cancel`, `retry`, `move`, `export` and `import`."""

# ruff: noqa: FBT002, PLC0415 - as in `app`
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.error_messages import reported
from llama_deploy.cli.options import AsJson, Origin
from llama_deploy.cli.tasks.commands import Time, tasks

__all__ = ["tasks"]


_LAST_STEP = "last-step"
Task = Annotated[
    str | None,
    typer.Argument(metavar="TASK", help="The id of the task. Leave it out to change all tasks of a filter."),
]
Status = Annotated[
    list[str] | None, typer.Option(metavar="STATUS", help="Only tasks with this status. May repeat.")
]
Service = Annotated[str | None, typer.Option(metavar="NAME", help="Only tasks of this service.")]
Session = Annotated[str | None, typer.Option(metavar="ID", help="Only tasks of this session.")]
Tag = Annotated[list[str] | None, typer.Option(metavar="TAG", help="Only tasks with this tag. May repeat.")]
Prefix = Annotated[
    str | None, typer.Option("--id", metavar="PREFIX", help="Only tasks whose id begins with this.")
]
Every = Annotated[bool, typer.Option("--all", help="Allow a filter without a condition.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be changed. The default.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Change all tasks of the filter.")]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="PLACE",
        help="`last-step`: finished steps do not run again. `start`: all steps run again, and the run "
        "arguments may be others. The id of a step of TASK, such as 1.2, as `llamactl tasks show` prints it: "
        "this step and what followed run again.",
    ),
]


@tasks.command()
def retry(  # noqa: PLR0913, PLR0917 - typer
    context: typer.Context,
    task: Task = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Other run arguments, all of them, only with --from start; as for `llamactl run`.",
        ),
    ] = None,
    origin: From = _LAST_STEP,
    task_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The id of the new task. The same command again gets the same task."),
    ] = None,
    status: Status = None,
    service: Service = None,
    session: Session = None,
    tag: Tag = None,
    created_after: Time = None,
    created_before: Time = None,
    id_prefix: Prefix = None,
    every: Every = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Try ended tasks again, each as a new task in the same session.

    With TASK: that one. Without: all tasks of the filter that have failed or timed out, or that have one
    of the given statuses, and were not retried before. Nothing is changed without --yes.
    """
    from llama_deploy.cli.tasks.changes import BulkOptions, RetryOptions, change_tasks, retry_task

    wanted = {
        "status": status or (),
        "service": service,
        "session": session,
        "tag": tag or (),
        "created_after": created_after,
        "created_before": created_before,
        "q": id_prefix,
    }
    place = "last_step" if origin == _LAST_STEP else origin
    of_all: Literal["start", "last_step"] = "start" if origin == "start" else "last_step"
    bulk = BulkOptions("retry", wanted, of_all, every=every, dry_run=dry_run, yes=yes, as_json=as_json)
    if task is None:
        with reported(context.obj):
            bulk.check_alone(task_id=task_id, origin=place)
        with_client(context.obj, lambda client: change_tasks(client, bulk))
        return
    one = RetryOptions(task, arguments or [], place, task_id, as_json=as_json)
    with reported(context.obj):
        bulk.check_unused()
    with_client(context.obj, lambda client: retry_task(client, one))


@tasks.command()
def cancel(  # noqa: PLR0913, PLR0917 - typer
    context: typer.Context,
    task: Task = None,
    status: Status = None,
    service: Service = None,
    session: Session = None,
    tag: Tag = None,
    created_after: Time = None,
    created_before: Time = None,
    id_prefix: Prefix = None,
    every: Every = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cancel open tasks.

    With TASK: that one. Without: all open tasks of the filter. Nothing is changed without --yes.
    """
    from llama_deploy.cli.tasks.changes import BulkOptions, change_tasks
    from llama_deploy.cli.tasks.following import cancel_task

    wanted = {
        "status": status or (),
        "service": service,
        "session": session,
        "tag": tag or (),
        "created_after": created_after,
        "created_before": created_before,
        "q": id_prefix,
    }
    bulk = BulkOptions("cancel", wanted, every=every, dry_run=dry_run, yes=yes, as_json=as_json)
    if task is None:
        with reported(context.obj):
            bulk.check_alone()
        with_client(context.obj, lambda client: change_tasks(client, bulk))
        return
    with reported(context.obj):
        bulk.check_unused()
    with_client(context.obj, lambda client: cancel_task(client, task, as_json=as_json))


@tasks.command()
def export(
    context: typer.Context,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The id of the task.")],
) -> None:
    """Print all that is stored of a task as JSON.

    For example: `llamactl tasks export TASK > run.json`.
    It holds the arguments, the events and the result, with all that is secret in them.
    """
    from llama_deploy.cli.tasks.changes import export_task

    with_client(context.obj, lambda client: export_task(client, task))


@tasks.command("import")
def import_(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `llamactl tasks export` has printed; - is stdin.")
    ],
    task_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The id of the copy. Default: that of the task."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store a copy of an exported task, to look at it here.

    The copy has ended, and nothing runs.
    """
    from llama_deploy.cli.tasks.changes import import_task

    with_client(context.obj, lambda client: import_task(client, file, task_id=task_id, as_json=as_json))


@tasks.command()
def move(
    context: typer.Context,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The id of the task.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="The version of a living instance of its service, or the characters with which it begins, "
            "at least 4. `llamactl status --json` shows the versions.",
        ),
    ],
    origin: Annotated[
        Origin,
        typer.Option(
            "--from",
            help="`journal`: the run continues with this version, if it fits. `start`: the run begins again, "
            "and is offered all events that were sent to the task.",
        ),
    ] = Origin.JOURNAL,
    as_json: AsJson = False,
) -> None:
    """Move a task to another version of its service.

    The task is queued or waits, for example because it is stranded.
    """
    from llama_deploy.cli.tasks.moving import move_task

    with_client(context.obj, lambda client: move_task(client, task, to=to, origin=origin, as_json=as_json))
