"""`llamactl tasks list`, `show` and `count`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, get_args

import typer

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.output import note
from llama_deploy.cli.text_tables import age, aligned, shorten, terminal_width
from llama_deploy.client import Client
from llama_deploy.client.task_queries import build_filter
from llama_deploy.printable import printable, printable_lines, printable_traceback
from llama_deploy.types import TaskStatus
from llama_deploy.types.task_lists import CountBy, EndedStep, TaskAttempt, TaskDetails, TaskFilter, TaskPage

_PAGE: Final = 500
"""How many tasks are asked for at a time if all are shown."""
_MAX_NAME: Final = 20
"""How many characters of the name of a service a row shows."""


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The command line of `llamactl tasks list`."""

    conditions: Mapping[str, Any]
    """As for `build_filter`."""
    limit: int
    cursor: str | None
    everything: bool
    """Show all tasks, page by page."""
    as_json: bool


async def list_tasks(client: Client, options: ListOptions) -> None:
    """Print tasks.

    Raises:
        InvalidRequestError: A condition or the cursor is not valid.
    """
    wanted = build_filter(**options.conditions)
    cursor, is_first = options.cursor, True
    limit = _PAGE if options.everything else options.limit
    while True:
        page = await _filled_page(client, wanted, limit=limit, cursor=cursor)
        _print_page(page, as_json=options.as_json, with_header=is_first)
        cursor, is_first = page.next_cursor, False
        if cursor is None or not options.everything:
            break
    if cursor is not None and not options.as_json:
        note(f"There are more tasks: repeat the command with --cursor {cursor}, or with --all")


async def _filled_page(client: Client, wanted: TaskFilter, *, limit: int, cursor: str | None) -> TaskPage:
    """Return a page that is only shorter than `limit` if no more tasks follow."""
    items: list[TaskDetails] = []
    while True:
        page = await client.tasks.page(wanted, limit=limit - len(items), cursor=cursor)
        items += page.items
        cursor = page.next_cursor
        if cursor is None or len(items) == limit:
            return TaskPage(items=items, next_cursor=cursor)


def _print_page(page: TaskPage, *, as_json: bool, with_header: bool) -> None:
    if as_json:
        typer.echo(page.model_dump_json(exclude_unset=True))
    elif page.items:
        for line in table_of(
            page.items, now=datetime.now(UTC), with_header=with_header, width=terminal_width()
        ):
            typer.echo(line)
    elif with_header:
        note("There are no such tasks.")


def table_of(
    tasks: Sequence[TaskDetails], *, now: datetime, with_header: bool, width: int | None
) -> Iterator[str]:
    """Yield the rows of a table of tasks: id, service, status, since when, and the progress or the error.

    Args:
        tasks: The tasks.
        now: The present time.
        with_header: Whether to begin with the names of the columns.
        width: How many characters a row may have. None: as many as it needs.
    """
    rows = [
        (
            printable(task.task_id),
            shorten(printable(task.service_name), _MAX_NAME),
            "stranded" if task.stranded else task.status.value,
            age(task.since or task.created_at, now=now),
            _remark(task),
        )
        for task in tasks
    ]
    if with_header:
        rows.insert(0, ("task", "service", "status", "since", ""))
    yield from aligned(rows, width=width, right=3)


def _remark(task: TaskDetails) -> str:
    if task.error is not None and task.status is not TaskStatus.CANCELLED:
        return printable(f"{task.error.type.rpartition('.')[2]}: {task.error.message}")
    return printable(task.progress or "")


async def show_task(client: Client, task_id: str, *, as_json: bool) -> None:
    """Print all that is known of a task.

    Raises:
        TaskNotFoundError: It does not exist.
    """
    task = await client.tasks.get(task_id)
    if as_json:
        typer.echo(task.model_dump_json())
        return
    now = datetime.now(UTC)
    facts = [*_facts(task, now=now)]
    place = max(len(name) for name, _ in facts)
    for name, text in facts:
        typer.echo(f"{name:{place}}  {printable(text)}")
    for title, lines in (("steps", _steps(task.steps or [])), ("attempts", _attempts(task.attempts or []))):
        if lines:
            typer.echo(f"\n{title}")
        for line in lines:
            typer.echo(f"  {printable(line)}")
    if task.error is not None:
        typer.echo(f"\n{printable_lines(f'{task.error.type}: {task.error.message}')}")
        if task.error.traceback:
            typer.echo(printable_traceback(task.error.traceback.rstrip()))
    if task.result is not None and task.result.status is TaskStatus.SUCCEEDED:
        text = json.dumps(task.result.value, ensure_ascii=False, indent=2)
        typer.echo(f"\nresult\n{printable_lines(text)}")


def _facts(task: TaskDetails, *, now: datetime) -> Iterator[tuple[str, str]]:
    since = "" if task.since is None else f" for {age(task.since, now=now)}"
    ended = " ago" if task.status.is_terminal else ""
    yield "task", task.task_id
    yield "status", task.status.value + (since.replace(" for ", ", ") + ended if ended else since)
    yield "service", task.service_name + (f", version {task.version[:12]}" if task.version else "")
    yield "session", task.session_id
    for name, text in (
        ("waits for", task.waits_for),
        ("stranded", task.stranded),
        ("progress", task.progress),
        ("running", ", ".join(step.step for step in task.present_steps or ())),
        ("tags", ", ".join(task.tags)),
        ("parent", task.parent_task_id),
        ("children", ", ".join(task.children or ())),
        ("retry of", task.retry_of),
    ):
        if text:
            yield name, text
    for name, at in (
        ("created", task.created_at),
        ("started", task.started_at),
        ("finished", task.finished_at),
    ):
        if at is not None:
            yield name, f"{at.astimezone():%Y-%m-%d %H:%M:%S} ({age(at, now=now)} ago)"
    if task.durability is not None:
        reason = f": {task.volatile_reason}" if task.volatile_reason else ""
        yield "durability", task.durability.value + reason
    if task.arguments is not None:
        yield "arguments", json.dumps(task.arguments, ensure_ascii=False)


def _steps(steps: Sequence[EndedStep]) -> list[str]:
    return [
        (f"{step.step_id}  " if step.step_id else "")
        + f"{step.began_at.astimezone():%H:%M:%S}  {step.step}  "
        + f"{(step.ended_at - step.began_at).total_seconds():.3f} s"
        + (f", {step.events} events" if step.events else "")
        + (f", attempt {step.attempt}" if step.attempt > 1 else "")
        + (f", {step.error}" if step.error else "")
        for step in steps
    ]


def _attempts(attempts: Sequence[TaskAttempt]) -> list[str]:
    lines = []
    for each in attempts:
        began = "" if each.began_at is None else f"  {each.began_at.astimezone():%Y-%m-%d %H:%M:%S}"
        lines.append(f"{each.attempt}{began}  {each.end or 'running'}  on {each.instance_id}")
    return lines


async def count_tasks(client: Client, *, by: str, as_json: bool) -> None:
    """Print how many tasks there are.

    Raises:
        CommandError: `by` is not valid.
    """
    names: list[CountBy] = [name for name in get_args(CountBy) if name in by.split(",")]
    if set(by.split(",")) - {*names, ""}:
        raise CommandError(
            f"tasks cannot be counted by {by!r}", hint="use status, service, or status,service"
        )
    counts = await client.tasks.count(names)
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json", exclude_none=True) for each in counts]))
        return
    rows = [
        (printable(each.service or ""), each.status.value if each.status else "", str(each.count))
        for each in counts
    ]
    if not rows:
        note("There are no tasks.")
        return
    places = [max(len(row[column]) for row in rows) for column in range(3)]
    for service, status, count in rows:
        columns = [f"{text:{place}}" for text, place in ((service, places[0]), (status, places[1])) if place]
        typer.echo("  ".join([*columns, f"{count:>{places[2]}}"]))
