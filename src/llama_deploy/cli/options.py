"""The options that commands share, and where they look for the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from llama_deploy.cli.error_messages import CommandError

DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
"""The control plane of `llamactl serve` without options."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that stand before the command."""

    server: str
    """The control plane's URL, without a slash at its end."""
    insecure: bool
    timeout: float | None
    """Seconds. None: as long as it takes."""
    verbose: bool
    given: frozenset[str]
    """The names of those that the command line holds; the others are defaults, or from the environment."""

    def refuse(self, *names: str, command: str) -> None:
        """Refuse options that a command has no use for, so that nobody believes that they act.

        Raises:
            CommandError: The command line holds one of `names`.
        """
        for name in names:
            if name in self.given:
                raise CommandError(
                    f"--{name} says nothing to `llamactl {command}`",
                    hint=f"leave it out; `llamactl {command} --help` shows what can be set",
                )


def _read_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise typer.BadParameter(f"{text!r} is no URL of a control plane; write one such as {DEFAULT_SERVER}")
    return text.rstrip("/")


_TARGETS: Final = typer.Argument(
    metavar="[NAME=]MODULE:ATTRIBUTE...",
    help="Workflows, such as `app:workflow` or `path/app.py:workflow`: an instance, a class, or a "
    "function without arguments that returns one. The service is called like the attribute unless NAME "
    "is given.",
)
Targets = Annotated[list[str], _TARGETS]
OptionalTargets = Annotated[list[str] | None, _TARGETS]
Server = Annotated[
    str,
    typer.Option(
        "--server",
        "-s",
        metavar="URL",
        envvar="LLAMA_DEPLOY_CONTROL_PLANE_URL",
        callback=_read_url,
        help="The control plane.",
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", "-k", help="Accept any certificate of an https server.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", "-t", metavar="SECONDS", min=0.001, help="How long to wait."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log everything; errors with their tracebacks.")
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many tasks each service works on at a time. Unless given: "
        "LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS of the environment, or 8.",
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The control plane's port; 0: any free one.")]
QueuePort = Annotated[
    int,
    typer.Option(min=0, max=65535, help="The port of a message queue in this process; 0: any free one."),
]
Queue = Annotated[
    str | None,
    typer.Option(
        "--queue",
        metavar="URL",
        envvar="LLAMA_DEPLOY_QUEUE",
        show_envvar=True,
        help="The broker, such as `rabbitmq://user:password@host/vhost`, `nats://host`, `redis://host`, "
        "`kafka://host:9092` or `sqs://region`.",
    ),
]
_STORE: Final = typer.Option(
    "--store",
    metavar="URI",
    envvar="CONTROL_PLANE_STATE_STORE_URI",
    help="The state store, such as `postgresql://user:password@host/database` or `sqlite:///path.db`.",
)
Store = Annotated[str, _STORE]
OptionalStore = Annotated[str | None, _STORE]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, one object a line.")]
