"""The commands of `llamactl keys`. Each imports its implementation when it runs."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports as described above
from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.error_messages import reported
from llama_deploy.cli.options import AsJson, OptionalStore, Settings
from llama_deploy.cli.shared_options import CommandGroup
from llama_deploy.types.callers import AccessScope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llama_deploy.cli.keys.administration import KeyAdministration

keys = CommandGroup(
    help="Manage the API keys of a control plane. With --store, in a state store: with SQLite, while no"
    " control plane uses it.",
    no_args_is_help=True,
)


@keys.command("create")
def create_key(
    context: typer.Context,
    scopes: Annotated[
        list[AccessScope],
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="What its callers may do: `tasks:read`, `tasks:write`, `inbox:answer`, `services:host`,"
            " `metrics:read` or `admin`. Repeat the option for several scopes.",
        ),
    ],
    expires: Annotated[
        str,
        typer.Option(metavar="AGE", help="After what time it expires, such as `90d` or `12h`; or `never`."),
    ],
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    tenant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose sessions, tasks and questions its callers work with."),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The user of the tenant whose they are, if not all of the tenant."),
    ] = None,
    store: OptionalStore = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. It is not stored, and cannot be shown again.

    The first key is created with --store, or with the key in CONTROL_PLANE_ADMIN_KEY of the control plane.
    """
    from llama_deploy.cli.keys import administration as command

    _administer(
        context.obj,
        store,
        lambda to: command.create_key(
            to,
            scopes=scopes,
            expires=expires,
            as_json=as_json,
            name=name,
            tenant=tenant,
            subject=subject,
        ),
        command="keys create",
    )


@keys.command("list")
def list_keys(context: typer.Context, store: OptionalStore = None, as_json: AsJson = False) -> None:
    """List the keys without their secrets, the newest first."""
    from llama_deploy.cli.keys import administration as command

    _administer(context.obj, store, lambda to: command.list_keys(to, as_json=as_json), command="keys list")


@keys.command("revoke")
def revoke_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of the key, as in the list.")],
    store: OptionalStore = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key at once."""
    from llama_deploy.cli.keys import administration as command

    _administer(
        context.obj, store, lambda to: command.revoke_key(to, key_id, as_json=as_json), command="keys revoke"
    )


def _administer(
    settings: Settings,
    store: str | None,
    work: Callable[[KeyAdministration], Awaitable[None]],
    *,
    command: str,
) -> None:
    """Do work on the keys of a control plane, or with `store` on those of a state store."""
    from llama_deploy.cli.keys.administration import keys_in_store, keys_of_server

    if store is None or "server" in settings.given:
        with_client(settings, lambda client: work(keys_of_server(client)))
        return

    async def work_in(opening: AbstractAsyncContextManager[KeyAdministration]) -> None:
        async with opening as administration:
            await work(administration)

    settings.logs(level=logging.WARNING)
    with reported(settings):
        settings.reject("server", "insecure", "timeout", command=command)
        asyncio.run(work_in(keys_in_store(store)))
