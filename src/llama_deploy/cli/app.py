"""The commands. Each imports its implementation when it runs, so that short commands start fast."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports as described above
from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.database.commands import db
from llama_deploy.cli.error_messages import CommandError, reported
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.inbox.commands import inbox
from llama_deploy.cli.keys.audit_command import audit
from llama_deploy.cli.keys.commands import keys
from llama_deploy.cli.options import (
    DEFAULT_SERVER,
    HUMAN_RESPONSE,
    AllowTypes,
    AsJson,
    Auth,
    Concurrency,
    HealthHost,
    HealthPort,
    Insecure,
    LogFormatOption,
    Loop,
    OptionalStore,
    OptionalTargets,
    Port,
    Processes,
    Queue,
    QueuePort,
    ServeAuth,
    Server,
    ServeTlsCert,
    ServeTlsClientCa,
    ServeTlsKey,
    Settings,
    Targets,
    Timeout,
    Verbose,
    Version,
    WorkerTlsCert,
    WorkerTlsClientCa,
    WorkerTlsKey,
    split_urls,
)
from llama_deploy.cli.output import Commands
from llama_deploy.cli.sessions.commands import sessions
from llama_deploy.cli.shared_options import CommandGroup, given_options
from llama_deploy.cli.tasks.change_commands import tasks

app = CommandGroup(
    name="llamactl",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # the panels of rich cut long words, such as the names of variables
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(sessions, name="sessions")
app.add_typer(tasks, name="tasks")
app.add_typer(inbox, name="inbox")
app.add_typer(keys, name="keys")
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
    LLAMA_DEPLOY_API_KEY is set in the environment, it is sent as a bearer token: a key of the control plane
    (see `llamactl serve --auth`), or of a proxy in front of it. LLAMA_DEPLOY_API_KEY_FILE is the path of a
    file with the key.
    LLAMA_DEPLOY_HEADERS is a JSON object with more headers. LLAMA_DEPLOY_CA is the path of a PEM file with
    the certificate authorities to trust. LLAMA_DEPLOY_CLIENT_CERT and LLAMA_DEPLOY_CLIENT_KEY are those of
    the certificate that is shown to servers.

    Exit codes of all commands: 0 success, 1 failure, 2 wrong usage, 3 the control plane or what the command
    names was not found, 74 the output cannot be written, 124 timeout, 130 Ctrl-C, 141 output closed.
    With --json, an error is one JSON object on stderr: error, message, hint, exit_code, facts.
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
    auth: ServeAuth = Auth.OFF,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote", help="Allow a --host that other machines can reach, without --auth keys."
        ),
    ] = False,
    tls_cert: ServeTlsCert = None,
    tls_key: ServeTlsKey = None,
    tls_client_ca: ServeTlsClientCa = None,
    as_json: AsJson = False,
) -> None:
    """Run a control plane, a message queue and services until Ctrl-C.

    Control plane and queue run in this process, and the steps in others. Use --queue and --store for a
    message broker and a database that run elsewhere. With the same broker and the same PostgreSQL database
    you can run this command on several machines, with or without workflows.
    """
    settings: Settings = context.obj
    logs = settings.logs()
    with reported(settings):
        settings.reject("server", "insecure", "timeout", command="serve")
        from llama_deploy.cli.serving.children import Children
        from llama_deploy.supervisor.link import SupervisorLink

        link = SupervisorLink.from_environment()
        # They import while this process does.
        children = Children.start(processes) if link is None and processes and targets else None
        from llama_deploy.cli.serving.program import Program
        from llama_deploy.web.server_tls import TlsFiles

        tls = TlsFiles.of(tls_cert, tls_key, tls_client_ca)
        program = Program(targets or [], logs, max_concurrent_tasks, allow_types, tls)
        if link is not None:
            from llama_deploy.cli.serving.worker_command import work_for_parent

            work_for_parent(program, queue=queue, link=link, loop=loop)
            return
        from llama_deploy.cli.place import Place
        from llama_deploy.cli.serving import serve_command as serving

        place = Place(
            data_dir=data_dir,
            host=host,
            port=port,
            queue_port=queue_port,
            allow_remote=allow_remote,
            auth=auth,
            queue=queue,
            store=store,
            tls=tls,
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
    tls_cert: WorkerTlsCert = None,
    tls_key: WorkerTlsKey = None,
    tls_client_ca: WorkerTlsClientCa = None,
    as_json: AsJson = False,
) -> None:
    """Run services for a control plane in another process.

    The command waits until the control plane responds. Ctrl-C lets running tasks finish. With --port,
    /health/ready answers 200 while all processes work on tasks, and else 503 with what is wrong.
    """
    settings: Settings = context.obj
    logs = settings.logs()
    with reported(settings, servers=settings.servers):
        settings.reject("timeout", command="worker")
        from llama_deploy.supervisor.link import SupervisorLink

        if port is None and (idle := given_options(context, ["host", "allow_remote"])):
            option = "--host" if "host" in idle else "--allow-remote"
            raise CommandError(
                f"{option} has no effect without --port", hint="pass --port too, or leave it out"
            )
        from llama_deploy.web.server_tls import TlsFiles

        link = SupervisorLink.from_environment()
        tls = TlsFiles.of(tls_cert, tls_key, tls_client_ca)
        health = None
        if link is None and port is not None:
            from llama_deploy.cli.addresses import check_remote
            from llama_deploy.cli.serving.health_address import HealthAddress

            check_remote(host, what="see how this worker is doing", allowed=allow_remote)
            health = HealthAddress.of(host, port, tls=tls)
        if link is None and tls is not None:
            tls.load()  # or says what is wrong with them
        if link is None and processes:
            from llama_deploy.cli.serving.supervising import Supervising
            from llama_deploy.supervisor.child_process import ChildCommand

            command = ChildCommand.of_this_process()
            supervising = Supervising(processes, settings.verbose, settings.log_format, health, command)
            supervising.replace_this_process()
        from llama_deploy.cli.serving.program import Program
        from llama_deploy.cli.serving.worker_command import Work

        program = Program(targets, logs, max_concurrent_tasks, allow_types, tls)
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
    from llama_deploy.cli.running.run_command import RunOptions, run_task

    options = RunOptions(
        service_name=service,
        arguments=arguments or [],
        session_id=session,
        task_id=task_id,
        detach=detach,
        quiet=quiet,
        as_json=as_json,
    )
    sys.exit(with_client(context.obj, lambda client: run_task(client, options)))


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
    from llama_deploy.cli.running.send_command import SendOptions, send_event

    options = SendOptions(task_id=task, event=event, fields=fields or [], as_json=as_json)
    with_client(context.obj, lambda client: send_event(client, options))


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

    with_client(context.obj, lambda client: print_status(client, after=after, limit=limit, as_json=as_json))


app.command("audit")(audit)
