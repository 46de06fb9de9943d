"""`llamactl sessions`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import typer

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.output import note
from llama_deploy.cli.text_tables import aligned, terminal_width
from llama_deploy.client import Client
from llama_deploy.errors import SessionBusyError
from llama_deploy.printable import printable
from llama_deploy.types import HistoryItem


async def create_session(client: Client, *, policy: str, tags: Sequence[str], as_json: bool) -> None:
    """Create a session and print its id.

    Raises:
        InvalidRequestError: The policy is unknown, or a tag cannot be one.
    """
    session = await client.core.sessions.create(policy=policy, tags=tags)
    typer.echo(json.dumps({"session_id": session.id}) if as_json else session.id)


async def list_sessions(client: Client, *, tag: str | None, limit: int, cursor: str, as_json: bool) -> None:
    """Print a page of the sessions, the newest first.

    Raises:
        InvalidCursorError: The cursor is malformed, or belongs to another list.
    """
    page = await client.core.sessions.page(tag=tag, limit=limit, cursor=cursor)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    if not page.items:
        where = "" if tag is None else f" with the tag {printable(tag)!r}"
        note(f"There are no {'further ' if cursor else ''}sessions{where}.")
    rows = [
        (
            printable(session.session_id),
            f"{session.created_at.astimezone():%Y-%m-%d %H:%M}",
            session.policy.value,
            printable(", ".join(session.tags)),
        )
        for session in page.items
    ]
    if rows:
        rows.insert(0, ("session", "created", "policy", "tags" if any(row[3] for row in rows) else ""))
    for line in aligned(rows, width=terminal_width()):
        typer.echo(line)
    if page.next_cursor is not None:
        filters = [] if tag is None else ["--tag", tag]
        command = shlex.join(["llamactl", "sessions", "list", *filters, "--cursor", page.next_cursor])
        note(f"There are more sessions: {printable(command)}")


async def show_session(client: Client, session_id: str, *, as_json: bool) -> None:
    """Print a session with its state and the history of its tasks.

    Raises:
        SessionNotFoundError: The session does not exist.
    """
    session = await client.core.sessions.get(session_id)
    history = await session.history()
    state = await session.get_state()
    if as_json:
        facts = {
            "session_id": session.id,
            "state": state.state,
            "state_version": state.version,
            "history": [item.model_dump(mode="json") for item in history],
        }
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"session {printable(session.id)}")
    typer.echo(f"state   {printable(json.dumps(state.state, ensure_ascii=False))} (version {state.version})")
    typer.echo(f"tasks   {len(history)}")
    for item in history:
        created = f"{item.created_at.astimezone():%Y-%m-%d %H:%M:%S}"
        typer.echo(f"\n{created}  {item.status.value:9}  {printable(item.task_id)}")
        typer.echo(f"  {printable(item.service_name)}({printable(_arguments(item))})")
        if item.error is not None:
            typer.echo(f"  {printable(f'{item.error.type}: {item.error.message}')}")
        elif item.result:
            typer.echo(f"  {printable(item.result)}")


def _arguments(item: HistoryItem) -> str:
    pairs = (item.arguments or {}).items()
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in pairs)


async def fork_session(client: Client, session_id: str, *, task_id: str | None, as_json: bool) -> None:
    """Create a session with the state that another one had after a task, and print its id.

    Raises:
        SessionNotFoundError: The session does not exist.
        TaskNotFoundError: It has no such task.
        ConflictError: The task has not ended.
        StateNotKeptError: The state of that time was not kept.
    """
    session = await client.core.sessions.get(session_id)
    fork = await session.fork(task_id)
    typer.echo(json.dumps({"session_id": fork.id}) if as_json else fork.id)


async def delete_session(client: Client, session_id: str, *, cancel: bool, as_json: bool) -> None:
    """Delete a session with its tasks and its state.

    Raises:
        SessionNotFoundError: The session does not exist.
        CommandError: A task of it has not ended, and `cancel` is False.
    """
    session = await client.core.sessions.get(session_id)
    try:
        await client.core.sessions.delete(session.id, cancel=cancel)
    except SessionBusyError as exc:
        count = "an open task" if exc.open_tasks == 1 else f"{exc.open_tasks or 'several'} open tasks"
        raise CommandError(
            f"session {session.id} has {count}",
            hint=f"wait for its end, or stop and delete what is open: "
            f"llamactl sessions delete {shlex.quote(session.id)} --cancel",
            exit_code=ExitCode.FAILED,
            code=exc.code,
            facts=exc.facts(),
        ) from exc
    told = f"Deleted session {session.id} with its tasks."
    typer.echo(json.dumps({"deleted": session.id}) if as_json else printable(told))
