"""The command line: `llamactl`."""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Run `llamactl` with the arguments of the process."""
    from llama_deploy.cli.app import app  # noqa: PLC0415 - importing the package starts nothing

    app(prog_name="llamactl")


def __getattr__(name: str) -> Any:
    """Return `llamactl`, the command group that 0.6 had here, for programs that run commands themselves."""
    if name != "llamactl":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from typer.main import get_command  # noqa: PLC0415 - as above

    from llama_deploy.cli.app import app  # noqa: PLC0415 - as above

    return get_command(app)


__all__ = ["main"]
