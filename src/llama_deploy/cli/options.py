"""The options that commands share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.logs import CommandLogging, LogFormat
from llama_deploy.web.server_url import ServerUrl

DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
"""The URL of the control plane that `llamactl serve` starts without options."""
HUMAN_RESPONSE: Final = "HumanResponseEvent"
"""The class of an answer, unless the workflow has one of its own."""


def server_option(url: str) -> list[str]:
    """Return the arguments of `llamactl` that name a control plane; none if it is the default."""
    return [] if url == DEFAULT_SERVER else ["-s", url]


class Auth(StrEnum):
    """Who may use the control plane and the queue that a command serves."""

    OFF = "off"
    """Everybody who reaches them."""
    KEYS = "keys"
    """Callers with a key."""


class Origin(StrEnum):
    """Where a run that is moved begins."""

    JOURNAL = "journal"
    """It continues."""
    START = "start"


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that stand before or after the command."""

    servers: tuple[ServerUrl, ...]
    """The URLs of the control plane's replicas."""
    insecure: bool
    timeout: float | None
    """Seconds to wait. None: no limit."""
    verbose: bool
    log_format: LogFormat | None
    given: frozenset[str]
    """The names of the options on the command line; all others are defaults or come from the environment."""
    as_json: bool = False
    """Whether the command prints JSON, errors included."""

    def with_options(self, given: Mapping[str, Any]) -> Settings:
        """Return the settings with what stands after the command on the command line."""
        changes = dict(given)
        if "server" in changes:
            changes["servers"] = split_urls(changes.pop("server"))
        return replace(self, **changes, given=self.given | given.keys())

    def logs(self, *, level: int = logging.INFO) -> CommandLogging:
        """Log to stderr; see `CommandLogging`."""
        return CommandLogging(verbose=self.verbose, log_format=self.log_format, level=level)

    def reject(self, *names: str, command: str) -> None:
        """Reject options that a command does not use.

        Raises:
            CommandError: The command line has one of `names`.
        """
        for name in names:
            if name in self.given:
                raise CommandError(
                    f"--{name} has no effect on `llamactl {command}`",
                    hint=f"leave it out; `llamactl {command} --help` lists the options",
                )


def split_urls(text: str) -> tuple[ServerUrl, ...]:
    """Return the URLs in the value of `--server`."""
    return tuple(ServerUrl(url.strip()) for url in text.split(","))


def _check_urls(text: str) -> str:
    for url in split_urls(text):
        if url.problem is not None:
            # The text is not shown: it may hold a password.
            raise typer.BadParameter(f"a URL {url.problem}; use one such as {DEFAULT_SERVER}")
    return text


_TARGETS: Final = typer.Argument(
    metavar="WORKFLOW",
    help="A workflow as [NAME=]MODULE:ATTRIBUTE, such as `app:Workflow` or `path/app.py:make_workflow`. The "
    "attribute is a workflow class, or a function without arguments that returns a new workflow: each run "
    "then has an object of its own. Or it is a workflow instance, which all runs share. NAME is the name of "
    "the service; without it, the service has the name of the attribute.",
)
Targets = Annotated[list[str], _TARGETS]
OptionalTargets = Annotated[list[str] | None, _TARGETS]
Server = Annotated[
    str,
    typer.Option(
        "--server",
        "-s",
        metavar="URL[,URL]...",
        envvar="LLAMA_DEPLOY_CONTROL_PLANE_URL",
        callback=_check_urls,
        help="The URL of the control plane, or the URLs of its replicas. The user and the password in "
        "https://user:password@host are sent as HTTP Basic Authorization, and never shown.",
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", "-k", help="Accept any certificate from an https server.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", "-t", metavar="SECONDS", min=0.001, help="Give up after this time."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log everything, and show the tracebacks of errors.")
]
LogFormatOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format",
        envvar="LLAMA_DEPLOY_LOG_FORMAT",
        show_envvar=True,
        help="How to log. Default: as the application configures logging, or as text.",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many tasks each service runs at the same time. Default: "
        "LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS from the environment, or 8.",
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        metavar="N",
        help="In how many processes the steps run. If one is killed or blocked, another one takes its tasks. "
        "0: in this process, which saves memory and time, but lacks that.",
    ),
]
Loop = Annotated[
    EventLoop,
    typer.Option(
        "--loop",
        help="The event loop. `auto` is uvloop, which is faster; but asyncio if a workflow's module imports "
        "nest_asyncio, which cannot patch uvloop.",
    ),
]
AllowTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-type",
        metavar="MODULE:CLASS",
        help="A further class that events, state and results may contain, such as `app.answers:Approval`. "
        "Repeat the option for several. Default: LLAMA_DEPLOY_WF_SERVICE_ALLOWED_TYPES from the environment.",
    ),
]
Port = Annotated[
    int,
    typer.Option(
        metavar="PORT", min=0, max=65535, help="The port of the control plane; 0 selects a free port."
    ),
]
HealthPort = Annotated[
    int | None,
    typer.Option(
        "--port",
        metavar="PORT",
        min=0,
        max=65535,
        envvar="LLAMA_DEPLOY_WF_SERVICE_PORT",
        show_envvar=True,
        help="The port at which probes find /health/live and /health/ready; 0 selects a free port. Default: "
        "there are no probes.",
    ),
]
HealthHost = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        envvar="LLAMA_DEPLOY_WF_SERVICE_HOST",
        show_envvar=True,
        help="The address to listen on for probes.",
    ),
]
_TLS_CERT: Final = (
    "A PEM file with the certificate of the servers of this command, and of the authorities between it and a "
    "trusted one. With it and --tls-key they speak TLS. A changed file is used without a restart."
)
_TLS_KEY: Final = "A PEM file with the key of the certificate, not encrypted."
_TLS_CLIENT_CA: Final = (
    "A PEM file with certificate authorities. Clients without a certificate of one of them are refused."
)
ServeTlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert", metavar="FILE", envvar="CONTROL_PLANE_TLS_CERT", show_envvar=True, help=_TLS_CERT
    ),
]
ServeTlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key", metavar="FILE", envvar="CONTROL_PLANE_TLS_KEY", show_envvar=True, help=_TLS_KEY
    ),
]
ServeTlsClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        metavar="FILE",
        envvar="CONTROL_PLANE_TLS_CLIENT_CA",
        show_envvar=True,
        help=_TLS_CLIENT_CA,
    ),
]
WorkerTlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        metavar="FILE",
        envvar="LLAMA_DEPLOY_WF_SERVICE_TLS_CERT",
        show_envvar=True,
        help=_TLS_CERT,
    ),
]
WorkerTlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key",
        metavar="FILE",
        envvar="LLAMA_DEPLOY_WF_SERVICE_TLS_KEY",
        show_envvar=True,
        help=_TLS_KEY,
    ),
]
WorkerTlsClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        metavar="FILE",
        envvar="LLAMA_DEPLOY_WF_SERVICE_TLS_CLIENT_CA",
        show_envvar=True,
        help=_TLS_CLIENT_CA,
    ),
]
ServeAuth = Annotated[
    Auth,
    typer.Option(
        "--auth",
        envvar="CONTROL_PLANE_AUTHENTICATION",
        show_envvar=True,
        help="Who may use the control plane and the queue: everybody, or callers with a key; see `llamactl "
        "keys`. With keys, --host may be an address that other machines can reach.",
    ),
]
QueuePort = Annotated[
    int,
    typer.Option(
        metavar="PORT",
        min=0,
        max=65535,
        help="The port of the built-in message queue; 0 selects a free port.",
    ),
]
Queue = Annotated[
    str | None,
    typer.Option(
        "--queue",
        metavar="URL",
        envvar="LLAMA_DEPLOY_QUEUE",
        show_envvar=True,
        help="A message broker instead of the built-in queue, such as `rabbitmq://user:password@host/vhost`, "
        "`nats://host`, `redis://host`, `kafka://host:9092` or `sqs://region`.",
    ),
]
_STORE: Final = typer.Option(
    "--store",
    metavar="URI",
    envvar="CONTROL_PLANE_STATE_STORE_URI",
    help="The database that stores tasks and sessions, such as `postgresql://user:password@host/database` "
    "or `sqlite:///path.db`.",
)
Store = Annotated[str, _STORE]
OptionalStore = Annotated[str | None, _STORE]


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer calls it by position
    if value:
        typer.echo(f"llamactl {version('llama-deploy')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The id of the session.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, one object per line.")]
