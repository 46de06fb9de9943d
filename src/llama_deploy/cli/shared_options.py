"""The options of `llamactl` itself, which may stand before or after the command."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Final, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from llama_deploy.cli.options import Settings

F = TypeVar("F", bound=Callable[..., Any])

_SHARED: Final = frozenset({"server", "insecure", "timeout", "verbose", "log_format"})
"""The parameters of the first command that every other command takes too, unless it has its own."""


def given_options(context: typer.Context, names: Collection[str]) -> frozenset[str]:
    """Return which of these parameters are on the command line, not from the environment or defaults."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return frozenset(name for name, source in sources.items() if source and source.name == "COMMANDLINE")


class _TakesSharedOptions:
    """A command that also takes the shared options. What it is given replaces what stands before it."""

    _is_parsing = False

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; while the command line is read, with the shared options."""
        own: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        if not self._is_parsing:
            return own
        taken = {text for parameter in own for text in parameter.opts}
        shared = (each for each in ctx.find_root().command.params if each.name in _SHARED)
        return [*own, *(each for each in shared if taken.isdisjoint(each.opts))]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line, and give what it has of the shared options to the command."""
        own = {parameter.name for parameter in super().get_params(ctx)}  # type: ignore[misc]
        self._is_parsing = True
        try:
            rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        finally:
            self._is_parsing = False
        shared = {name: ctx.params.pop(name) for name in _SHARED - own if name in ctx.params}
        given = given_options(ctx, shared)
        if given and isinstance(ctx.obj, Settings):
            ctx.obj = ctx.obj.with_options({name: shared[name] for name in given})
        if ctx.params.get("as_json") and isinstance(ctx.obj, Settings):
            ctx.obj = replace(ctx.obj, as_json=True)
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the help of its own options."""
        is_parsing, self._is_parsing = self._is_parsing, False  # --help is read like any other option
        super().format_options(ctx, formatter)  # type: ignore[misc]
        self._is_parsing = is_parsing

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write where the other options are."""
        super().format_epilog(ctx, formatter)  # type: ignore[misc]
        formatter.write_paragraph()
        formatter.write_text("`llamactl --help` lists the options of all commands, such as --verbose.")


class _Command(_TakesSharedOptions, TyperCommand):
    """A command that also takes the shared options."""


class _Group(_TakesSharedOptions, TyperGroup):
    """A group whose commands take the shared options too."""


class CommandGroup(typer.Typer):
    """A group of commands, each of which also takes the options of `llamactl` itself.

    Args:
        options: As for `typer.Typer`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"cls": _Group, **options})

    def command(self, *names: Any, **options: Any) -> Callable[[F], F]:
        """Register a command, as `typer.Typer.command` does."""
        return super().command(*names, **{"cls": _Command, **options})
