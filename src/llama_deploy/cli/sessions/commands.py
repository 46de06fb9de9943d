"""The commands of `llamactl sessions`. Each imports its implementation when it runs."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports as described above
from __future__ import annotations

from typing import Annotated

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.options import AsJson, SessionId
from llama_deploy.cli.shared_options import CommandGroup

sessions = CommandGroup(help="Manage sessions, which keep the state of a conversation.", no_args_is_help=True)


@sessions.command("list")
def list_sessions(
    context: typer.Context,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only sessions with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many sessions to show.")] = 20,
    cursor: Annotated[
        str, typer.Option(metavar="CURSOR", help="The next page, as the page before has printed it.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the sessions, the newest first."""
    from llama_deploy.cli.sessions import printing as command

    with_client(
        context.obj,
        lambda client: command.list_sessions(client, tag=tag, limit=limit, cursor=cursor, as_json=as_json),
    )


@sessions.command("show")
def show_session(context: typer.Context, session: SessionId, as_json: AsJson = False) -> None:
    """Show the state of a session and its tasks."""
    from llama_deploy.cli.sessions import printing as command

    with_client(context.obj, lambda client: command.show_session(client, session, as_json=as_json))


@sessions.command()
def create(
    context: typer.Context,
    policy: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="What happens to a task that is submitted while another one is open: `enqueue`, `parallel`, "
            "`parallel_while_waiting`, `reject` or `interrupt`.",
        ),
    ] = "enqueue",
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="A text to find the session by. May be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a session and print its id. Use it with `llamactl run --session ID`."""
    from llama_deploy.cli.sessions import printing as command

    with_client(
        context.obj,
        lambda client: command.create_session(client, policy=policy, tags=tags or [], as_json=as_json),
    )


@sessions.command("fork")
def fork_session(
    context: typer.Context,
    session: SessionId,
    at: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="The task after which to fork. Default: the present state."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a session as it was after a task, and print the new id.

    The copy has the state, but not the tasks.
    """
    from llama_deploy.cli.sessions import printing as command

    with_client(
        context.obj, lambda client: command.fork_session(client, session, task_id=at, as_json=as_json)
    )


@sessions.command("delete")
def delete_session(
    context: typer.Context,
    session: SessionId,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Stop and delete tasks that have not ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a session with its tasks, their results and its state."""
    from llama_deploy.cli.sessions import printing as command

    with_client(
        context.obj, lambda client: command.delete_session(client, session, cancel=cancel, as_json=as_json)
    )
