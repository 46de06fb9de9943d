"""The commands. Each imports its implementation when it runs, so that short commands start fast."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports as described above
from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from llama_deploy.cli.error_messages import CommandError, print_error, reported
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.options import (
    DEFAULT_SERVER,
    HUMAN_RESPONSE,
    AllowTypes,
    AsJson,
    Concurrency,
    HealthHost,
    HealthPort,
    Insecure,
    LogFormatOption,
    Loop,
    OptionalStore,
    OptionalTargets,
    Origin,
    Port,
    Processes,
    Queue,
    QueuePort,
    Server,
    Settings,
    Store,
    Targets,
    Timeout,
    Verbose,
    Version,
    split_urls,
)
from llama_deploy.cli.output import Commands
from llama_deploy.cli.shared_options import CommandGroup, given_options
from llama_deploy.errors import TaskTimeoutError

if TYPE_CHECKING:
    from llama_deploy.client import Client

T = TypeVar("T")

_DEFAULT_TIMEOUT: Final = 120.0
"""Seconds after which a command gives up if the control plane does not respond."""

app = CommandGroup(
    name="llamactl",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # the panels of rich cut long words, such as the names of variables
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
sessions = CommandGroup(help="Manage sessions, which keep the state of a conversation.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")
tasks = CommandGroup(help="Manage tasks.", no_args_is_help=True)
app.add_typer(tasks, name="tasks")
db = CommandGroup(help="Manage the database schema of a state store.", no_args_is_help=True)
app.add_typer(db, name="db")


@app.callback()
def main_options(
    context: typer.Context,
    server: Server = DEFAULT_SERVER,
    insecure: Insecure = False,
    timeout: Timeout = None,
    verbose: Verbose = False,
    log_format: LogFormatOption = None,
    _version: Version = False,
) -> None:
    """Serve workflows and run tasks.

    The options below may stand before or after the command: `llamactl status -s URL`. If
    LLAMA_DEPLOY_API_KEY is set in the environment, it is sent as a bearer token, for a proxy that checks it.
    LLAMA_DEPLOY_HEADERS is a JSON object with more headers. LLAMA_DEPLOY_CA is the path of a PEM file with
    the certificate authorities to trust.

    Exit codes of all commands: 0 success, 1 failure, 2 wrong usage, 3 the control plane or what the command
    names was not found, 74 the output cannot be written, 124 timeout, 130 Ctrl-C, 141 output closed.
    """
    context.obj = Settings(
        servers=split_urls(server),
        insecure=insecure,
        timeout=timeout,
        verbose=verbose,
        log_format=log_format,
        given=given_options(context, context.params),
    )


@app.command()
def serve(  # noqa: PLR0913, PLR0917 - typer
    context: typer.Context,
    targets: OptionalTargets = None,
    queue: Queue = None,
    store: OptionalStore = None,
    data_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="The directory for tasks and sessions; not used with --store.")
    ] = Path(".llama_deploy"),
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    queue_port: QueuePort = 8001,
    processes: Processes = 1,
    max_concurrent_tasks: Concurrency = None,
    loop: Loop = EventLoop.AUTO,
    allow_types: AllowTypes = None,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote", help="Allow a --host that other machines can reach. There is no authentication."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a control plane, a message queue and services until Ctrl-C.

    Control plane and queue run in this process, and the steps in others. Use --queue and --store for a
    message broker and a database that run elsewhere. With the same broker and the same PostgreSQL database
    you can run this command on several machines, with or without workflows.
    """
    settings: Settings = context.obj
    logs = settings.logs()
    with reported(verbose=settings.verbose):
        settings.reject("server", "insecure", "timeout", command="serve")
        from llama_deploy.cli.children import Children
        from llama_deploy.supervisor.link import SupervisorLink

        link = SupervisorLink.from_environment()
        # They import while this process does.
        children = Children.start(processes) if link is None and processes and targets else None
        from llama_deploy.cli.program import Program

        program = Program(targets or [], logs, max_concurrent_tasks, allow_types)
        if link is not None:
            from llama_deploy.cli.working import work_for_parent

            work_for_parent(program, queue=queue, link=link, loop=loop)
            return
        from llama_deploy.cli import serving
        from llama_deploy.cli.place import Place

        place = Place(
            data_dir=data_dir,
            host=host,
            port=port,
            queue_port=queue_port,
            allow_remote=allow_remote,
            queue=queue,
            store=store,
        )
        serving.serve(program, place, children=children, loop=loop, as_json=as_json)


@app.command()
def worker(  # noqa: PLR0913, PLR0917 - typer
    context: typer.Context,
    targets: Targets,
    queue: Queue = None,
    processes: Processes = 1,
    max_concurrent_tasks: Concurrency = None,
    loop: Loop = EventLoop.AUTO,
    allow_types: AllowTypes = None,
    port: HealthPort = None,
    host: HealthHost = "127.0.0.1",
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            envvar="LLAMA_DEPLOY_WF_SERVICE_ALLOW_REMOTE",
            show_envvar=True,
            help="Allow a --host that other machines can reach.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run services for a control plane in another process.

    The command waits until the control plane responds. Ctrl-C lets running tasks finish. With --port,
    /health/ready answers 200 while all processes work on tasks, and else 503 with what is wrong.
    """
    settings: Settings = context.obj
    logs = settings.logs()
    with reported(verbose=settings.verbose, servers=settings.servers):
        settings.reject("timeout", command="worker")
        from llama_deploy.supervisor.link import SupervisorLink

        if port is None and (idle := given_options(context, ["host", "allow_remote"])):
            option = "--host" if "host" in idle else "--allow-remote"
            raise CommandError(
                f"{option} has no effect without --port", hint="pass --port too, or leave it out"
            )
        link = SupervisorLink.from_environment()
        health = None
        if link is None and port is not None:
            from llama_deploy.cli.addresses import check_remote
            from llama_deploy.cli.health_address import HealthAddress

            check_remote(host, what="see how this worker is doing", allowed=allow_remote)
            health = HealthAddress(host, port)
        if link is None and processes:
            from llama_deploy.cli.supervising import Supervising
            from llama_deploy.supervisor.child_process import ChildCommand

            command = ChildCommand.of_this_process()
            supervising = Supervising(processes, settings.verbose, settings.log_format, health, command)
            supervising.replace_this_process()
        from llama_deploy.cli.program import Program
        from llama_deploy.cli.working import Work

        program = Program(targets, logs, max_concurrent_tasks, allow_types)
        work = Work(
            settings.servers,
            queue,
            loop,
            insecure=settings.insecure,
            as_json=as_json,
            link=link,
            health=health,
        )
        work.run(program.load())


@app.command()
def run(
    context: typer.Context,
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="The name of the service.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help='The run arguments. A value in JSON keeps its type (3, true, null, [1, 2], {}, "3"), unless '
            "the service expects a string. Every other value is a string. KEY=@FILE reads the value from a "
            "file, and @FILE reads all arguments from a JSON object in a file; @- is stdin.",
        ),
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="The session to run in. Default: a new one.")
    ] = None,
    task_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The id of the task. The same command again follows the same task. Default: a random id.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the id of the task and do not wait for its end.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the result only, not the events.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a task: print its events as they arrive, then its result. Ctrl-C cancels it.

    With --json, the first line has the ids of the task and its session, and the last line has the result.

    Exit codes: 0 the task succeeded, 1 it failed, 2 wrong usage, 3 the service, session or control plane was
    not found, 74 the output cannot be written, 124 timeout, 130 Ctrl-C, 141 output closed.
    """
    from llama_deploy.cli.run_command import RunOptions, run_task

    options = RunOptions(
        service_name=service,
        arguments=arguments or [],
        session_id=session,
        task_id=task_id,
        detach=detach,
        quiet=quiet,
        as_json=as_json,
    )
    sys.exit(_with_client(context.obj, lambda client: run_task(client, options)))


@app.command()
def send(
    context: typer.Context,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The id of the task.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help='The fields of the event. A value in JSON keeps its type (3, true, null, [1, 2], {}, "3"). '
            "Every other value is a string. KEY=@FILE reads the value from a file, and @FILE all fields "
            "from a JSON object.",
        ),
    ] = None,
    event: Annotated[str, typer.Option(metavar="CLASS", help="The class of the event.")] = HUMAN_RESPONSE,
    as_json: AsJson = False,
) -> None:
    """Send an event to a task, such as the answer to its question."""
    from llama_deploy.cli.send_command import SendOptions, send_event

    options = SendOptions(task_id=task, event=event, fields=fields or [], as_json=as_json)
    _with_client(context.obj, lambda client: send_event(client, options))


@app.command()
def status(
    context: typer.Context,
    after: Annotated[
        str,
        typer.Option(metavar="NAME", help="Show the services that follow this one. Default: from the first."),
    ] = "",
    limit: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="How many services to show.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Show the services, and how many instances of each are alive."""
    from llama_deploy.cli.overview import print_status

    _with_client(context.obj, lambda client: print_status(client, after=after, limit=limit, as_json=as_json))


@sessions.command()
def create(context: typer.Context, as_json: AsJson = False) -> None:
    """Create a session and print its id. Use it with `llamactl run --session ID`."""

    async def create_session(client: Client) -> None:
        session = await client.core.sessions.create()
        typer.echo(json.dumps({"session_id": session.id}) if as_json else session.id)

    _with_client(context.obj, create_session)


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
    """Move a queued or waiting task to another version of its service, for example because it is stranded."""
    from llama_deploy.cli.tasks_command import move_task

    _with_client(context.obj, lambda client: move_task(client, task, to=to, origin=origin, as_json=as_json))


@db.command()
def current(context: typer.Context, store: Store, as_json: AsJson = False) -> None:
    """Show the schema revision of a state store. Changes nothing."""
    from llama_deploy.cli.database import print_current

    _with_store(context.obj, print_current(store, as_json=as_json), command="db current")


@db.command()
def upgrade(context: typer.Context, store: Store, as_json: AsJson = False) -> None:
    """Upgrade a state store to the schema of this release. A control plane does the same when it starts.

    It is safe to run this several times at once, and with PostgreSQL while control planes are running.
    """
    from llama_deploy.cli.database import upgrade as upgrade_store

    _with_store(context.obj, upgrade_store(store, as_json=as_json), command="db upgrade")


def _with_store(settings: Settings, work: Coroutine[Any, Any, None], *, command: str) -> None:
    settings.logs(level=logging.WARNING)
    with reported(verbose=settings.verbose), closing(work):
        settings.reject("server", "insecure", "timeout", command=command)
        asyncio.run(work)


def _with_client(settings: Settings, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a client for at most `settings.timeout`; an error is printed and ends the process."""
    from llama_deploy.cli.environment import settings_of
    from llama_deploy.cli.first_contact import check_control_plane
    from llama_deploy.client import Client, ClientSettings

    async def with_client() -> T:
        with settings_of(ClientSettings):
            client = Client(
                settings.servers,
                disable_ssl=settings.insecure,
                timeout=settings.timeout or _DEFAULT_TIMEOUT,
            )
        async with client:
            try:
                async with asyncio.timeout(settings.timeout):
                    await check_control_plane(client)
                    return await work(client)
            except TimeoutError as exc:
                raise TaskTimeoutError(f"the command did not finish within {settings.timeout:g} s") from exc

    settings.logs(level=logging.WARNING)
    with reported(verbose=settings.verbose, servers=settings.servers):
        try:
            return asyncio.run(with_client())
        except (KeyboardInterrupt, asyncio.CancelledError):
            print_error("interrupted")
            sys.exit(ExitCode.INTERRUPTED)
