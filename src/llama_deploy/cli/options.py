"""The options that commands share, and where they look for the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import typer

DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
"""The control plane of `llamactl serve` without options."""

_SERVER_NAMES: Final = ("--server", "-s", "--control-plane")
_SERVER_HELP: Final = "The control plane."


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that may stand before any command."""

    server: str
    insecure: bool
    timeout: float | None
    verbose: bool

    def override(self, *, server: str | None, timeout: float | None, verbose: bool) -> Settings:
        """Return the settings with those that stand behind the command; None and False leave them."""
        return Settings(
            server=(server or self.server).rstrip("/"),
            insecure=self.insecure,
            timeout=self.timeout if timeout is None else timeout,
            verbose=verbose or self.verbose,
        )


Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]MODULE:ATTRIBUTE...",
        help="Workflows, such as `app:workflow` or `path/app.py:workflow`: an instance, a class, or a "
        "function without arguments that returns one. The service is called like the attribute unless NAME "
        "is given.",
    ),
]
GlobalServer = Annotated[
    str,
    typer.Option(*_SERVER_NAMES, metavar="URL", envvar="LLAMA_DEPLOY_CONTROL_PLANE_URL", help=_SERVER_HELP),
]
Server = Annotated[str | None, typer.Option(*_SERVER_NAMES, metavar="URL", help=_SERVER_HELP)]
Insecure = Annotated[
    bool, typer.Option("--insecure", "-k", help="Accept any certificate of an https server.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", "-t", metavar="SECONDS", min=0.001, help="How long to wait."),
]
Concurrency = Annotated[
    int, typer.Option(min=1, metavar="N", help="How many tasks each service works on at a time.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The control plane's port; 0: any free one.")]
QueuePort = Annotated[int, typer.Option(min=0, max=65535, help="The message queue's port; 0: any free one.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, one object a line.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log everything; errors with their tracebacks.")
]
