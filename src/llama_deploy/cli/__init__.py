"""The command line: `llamactl`."""

from __future__ import annotations


def main() -> None:
    """Run `llamactl` with the arguments of the process."""
    from llama_deploy.cli.app import app  # noqa: PLC0415 - importing the package starts nothing

    app(prog_name="llamactl")


__all__ = ["main"]
