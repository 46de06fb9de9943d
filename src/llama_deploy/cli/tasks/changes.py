"""Cancels, retries, exports and imports tasks for `llamactl tasks`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import typer

from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.client import Client
from llama_deploy.client.task_queries import build_filter
from llama_deploy.printable import printable
from llama_deploy.types.bulk_changes import BulkAction, BulkResult
from llama_deploy.types.task_export import TaskExport

_SHOWN: Final = 20
"""How many tasks are shown, with the reasons of those that are skipped."""


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """The command line of `llamactl tasks retry` for one task."""

    ended_id: str
    arguments: Sequence[str]
    origin: str
    task_id: str | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """The command line for all tasks of a filter."""

    action: BulkAction
    wanted: Mapping[str, Any]
    """The conditions, as `build_filter` takes them."""
    origin: Literal["start", "last_step"] = "last_step"
    every: bool = field(default=False, kw_only=True)
    dry_run: bool = field(default=False, kw_only=True)
    yes: bool = field(default=False, kw_only=True)
    as_json: bool = field(default=False, kw_only=True)

    @property
    def has_conditions(self) -> bool:
        """Whether the filter has a condition."""
        return any(value for value in self.wanted.values())

    def check_alone(self, *, task_id: str | None = None, origin: str = "last_step") -> None:
        """Check the options of a command that names no task.

        Raises:
            CommandError: It names no filter either, or an option does not fit.
        """
        if task_id is not None:
            raise CommandError("--task-id is for one task", hint="name the task to retry, or leave it out")
        if origin not in ("start", "last_step"):
            raise CommandError(
                f"--from {origin} names a step of one task",
                hint="name the task to retry, or use start or last-step",
            )
        if not self.has_conditions and not self.every:
            raise CommandError(
                f"there is no task to {self.action}",
                hint="name a task, or a filter such as --service NAME, or all tasks with --all",
            )
        if self.dry_run and self.yes:
            raise CommandError("--dry-run and --yes contradict each other", hint="leave out one of them")

    def check_unused(self) -> None:
        """Check that a command that names a task has no filter.

        Raises:
            CommandError: It has one.
        """
        if self.has_conditions or self.every or self.dry_run:
            raise CommandError(
                f"a task and a filter are named, and only one of them can be used to {self.action}",
                hint="leave out the id of the task, or the options of the filter",
            )


async def retry_task(client: Client, options: RetryOptions) -> None:
    """Retry one task, and print the id of the new one.

    Raises:
        CommandError: An argument is malformed.
        TaskNotFoundError: The task does not exist.
        RetryRefusedError: It cannot be retried in this way.
        InvalidRequestError: The arguments are not accepted.
    """
    arguments = await _arguments(client, options) if options.arguments else None
    again = await client.tasks.retry(
        options.ended_id, from_=options.origin, arguments=arguments, new_task_id=options.task_id
    )
    view = await client.tasks.get(again.task_id)
    told = f"Task {view.task_id} retries task {options.ended_id}; it is {view.status.value}."
    typer.echo(view.model_dump_json() if options.as_json else printable(told))


async def _arguments(client: Client, options: RetryOptions) -> dict[str, Any]:
    view = await client.task(options.ended_id).info()
    await client.core.services.list()
    service = client.core.services.items.get(view.service_name)
    return parse_arguments(options.arguments, None if service is None else service.input_schema)


async def change_tasks(client: Client, options: BulkOptions) -> None:
    """Change all tasks of a filter, or tell what would be changed.

    Raises:
        InvalidRequestError: The filter is not valid.
    """
    changed = skipped = shown = 0
    batches = client.tasks.bulk(
        options.action,
        build_filter(**options.wanted),
        dry_run=not options.yes,
        from_=options.origin,
        every=options.every,
    )
    async for batch in batches:
        changed, skipped = changed + batch.changed, skipped + batch.skipped
        if options.as_json:
            typer.echo(batch.model_dump_json())
        else:
            shown += _show(batch, most=_SHOWN - shown)
    if options.as_json:
        return
    would = "" if options.yes else "would be "
    done = {"cancel": "cancelled", "retry": "retried"}[options.action]
    typer.echo(f"{changed} task{'' if changed == 1 else 's'} {would}{done}, {skipped} skipped.")
    if not options.yes and changed:
        typer.echo("Nothing was changed. Run the command with --yes to do it.")


def _show(batch: BulkResult, *, most: int) -> int:
    """Print tasks and the reasons of those that are skipped; return how many."""
    lines = [
        f"{item.task_id}  skipped: {item.reason}"
        if item.reason
        else f"{item.task_id}  {item.new_task_id or ''}"
        for item in batch.items[: max(0, most)]
    ]
    for line in lines:
        typer.echo(printable(line.rstrip()))
    return len(lines)


async def export_task(client: Client, task_id: str) -> None:
    """Print all that is stored of a task.

    Raises:
        TaskNotFoundError: The task does not exist.
        PayloadTooLargeError: It is too large for one document.
    """
    typer.echo((await client.tasks.export(task_id)).model_dump_json())


async def import_task(client: Client, file: Path, *, task_id: str | None, as_json: bool) -> None:
    """Store a copy of an exported task, and print its id.

    Raises:
        CommandError: The file cannot be read.
        ExportFormatError: A newer release has written it.
        InvalidRequestError: It is not the document of an ended task.
        ConflictError: Another task has the id.
    """
    view = await client.tasks.import_(TaskExport.read(_read(file)), task_id=task_id)
    told = f"Stored a copy as task {view.task_id}; its status is {view.status.value}."
    typer.echo(view.model_dump_json() if as_json else printable(told))


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if file == Path("-") else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise CommandError(
            f"cannot read {str(file)!r}: {exc}", hint="name what `llamactl tasks export` has printed"
        ) from exc
