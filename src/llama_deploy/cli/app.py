"""The commands. What they do is imported when they run, so that short ones start fast."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports: see above
from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from llama_deploy.cli.error_messages import ExitCode, complain, reported
from llama_deploy.cli.logs import configure_logging
from llama_deploy.cli.options import (
    DEFAULT_SERVER,
    AsJson,
    Concurrency,
    Insecure,
    OptionalStore,
    OptionalTargets,
    Port,
    Queue,
    QueuePort,
    Server,
    Settings,
    Store,
    Targets,
    Timeout,
    Verbose,
)
from llama_deploy.errors import TaskTimeoutError

if TYPE_CHECKING:
    from llama_deploy.client import Client

T = TypeVar("T")

_PATIENCE: Final = 120.0
"""Seconds without a sign of the control plane after which a command gives up."""

app = typer.Typer(
    name="llamactl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
sessions = typer.Typer(help="Sessions: conversations that own state.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")
db = typer.Typer(help="The schema of a state store.", no_args_is_help=True)
app.add_typer(db, name="db")


@app.callback()
def main_options(
    context: typer.Context,
    server: Server = DEFAULT_SERVER,
    insecure: Insecure = False,
    timeout: Timeout = None,
    verbose: Verbose = False,
) -> None:
    """Serve workflows and run tasks. The options here stand before the command."""
    context.obj = Settings(
        server=server,
        insecure=insecure,
        timeout=timeout,
        verbose=verbose,
        given=frozenset(name for name in context.params if _is_given(context, name)),
    )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command()
def serve(  # noqa: PLR0913, PLR0917 - typer
    context: typer.Context,
    targets: OptionalTargets = None,
    queue: Queue = None,
    store: OptionalStore = None,
    data_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder that keeps sessions and tasks.")
    ] = Path(".llama_deploy"),
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    queue_port: QueuePort = 8001,
    max_concurrent_tasks: Concurrency = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen on an address that other machines reach.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run control plane, message queue and services in this process until Ctrl-C.

    --queue and --store name a broker and a database that run elsewhere. Over one broker and one PostgreSQL
    any number of machines may run this, with workflows or without.
    """
    settings: Settings = context.obj
    configure_logging(verbose=settings.verbose)
    with reported(verbose=settings.verbose):
        settings.refuse("server", "insecure", "timeout", command="serve")
        from llama_deploy.cli import serving
        from llama_deploy.cli.place import Place

        serving.serve(
            targets or [],
            Place(
                data_dir=data_dir,
                host=host,
                port=port,
                queue_port=queue_port,
                allow_remote=allow_remote,
                queue=queue,
                store=store,
            ),
            max_concurrent_tasks=max_concurrent_tasks,
            as_json=as_json,
        )


@app.command()
def worker(
    context: typer.Context,
    targets: Targets,
    queue: Queue = None,
    max_concurrent_tasks: Concurrency = None,
    as_json: AsJson = False,
) -> None:
    """Run more instances of services in this process, for a control plane that runs elsewhere."""
    settings: Settings = context.obj
    configure_logging(verbose=settings.verbose)
    with reported(verbose=settings.verbose, server=settings.server):
        settings.refuse("insecure", "timeout", command="worker")
        from llama_deploy.cli import serving

        serving.work(
            targets,
            control_plane_url=settings.server,
            queue=queue,
            max_concurrent_tasks=max_concurrent_tasks,
            as_json=as_json,
        )


@app.command()
def run(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help="The service's name.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help='Run arguments. A value that is JSON is taken as that (3, true, null, [1, 2], {}, "3"), '
            "unless the service asks for a string there; anything else is a string.",
        ),
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="A session; without one, the task gets its own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a task: show its events as they come, print its result. Ctrl-C cancels it.

    The exit code is 0 if it succeeds, 1 if it fails, 2 if the command is wrong, 3 if there is no such
    service, session or control plane, 124 after --timeout, 130 after Ctrl-C.
    """
    from llama_deploy.cli.run_command import RunOptions, run_task

    options = RunOptions(service_name=service, arguments=arguments or [], session_id=session, as_json=as_json)
    sys.exit(_with_client(context.obj, lambda client: run_task(client, options)))


@app.command()
def status(
    context: typer.Context,
) -> None:
    """Show the services, their living instances, and how many sessions there are."""
    from llama_deploy.cli.overview import print_status

    _with_client(context.obj, print_status)


@sessions.command()
def create(
    context: typer.Context,
) -> None:
    """Create a session and print its id, for `llamactl run --session ID`."""

    async def create_session(client: Client) -> None:
        typer.echo((await client.core.sessions.create()).id)

    _with_client(context.obj, create_session)


@db.command()
def current(context: typer.Context, store: Store) -> None:
    """Show which schema a state store has. Changes nothing."""
    from llama_deploy.cli.database import print_current

    _with_store(context.obj, print_current(store), command="db current")


@db.command()
def upgrade(context: typer.Context, store: Store) -> None:
    """Bring a state store to the schema of this release; a control plane that starts does so too.

    Several may do so at once, and other control planes may work on the store meanwhile, if it takes several.
    """
    from llama_deploy.cli.database import upgrade as upgrade_store

    _with_store(context.obj, upgrade_store(store), command="db upgrade")


def _with_store(settings: Settings, work: Coroutine[Any, Any, None], *, command: str) -> None:
    configure_logging(verbose=settings.verbose, level=logging.WARNING)
    with reported(verbose=settings.verbose), closing(work):
        settings.refuse("server", "insecure", "timeout", command=command)
        asyncio.run(work)


def _with_client(settings: Settings, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a client, at most for `settings.timeout`; errors are printed and end the process."""
    from llama_deploy.cli.environment import settings_of
    from llama_deploy.client import Client, ClientSettings

    async def with_client() -> T:
        with settings_of(ClientSettings):
            client = Client(
                control_plane_url=settings.server,
                disable_ssl=settings.insecure,
                timeout=settings.timeout or _PATIENCE,
            )
        async with client:
            try:
                async with asyncio.timeout(settings.timeout):
                    return await work(client)
            except TimeoutError as exc:
                raise TaskTimeoutError(f"not done within {settings.timeout} s") from exc

    configure_logging(verbose=settings.verbose, level=logging.WARNING)
    with reported(verbose=settings.verbose, server=settings.server):
        try:
            return asyncio.run(with_client())
        except (KeyboardInterrupt, asyncio.CancelledError):
            complain("interrupted")
            sys.exit(ExitCode.INTERRUPTED)
