"""`llamactl keys`, over HTTP or in a state store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import typer
from pydantic import ValidationError

from llama_deploy.cli.ages import age_seconds
from llama_deploy.cli.database.addresses import check_schema, sqlite_file
from llama_deploy.cli.database.local_actor import actor_on_this_machine
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.output import note
from llama_deploy.cli.text_tables import aligned, terminal_width
from llama_deploy.client import Client
from llama_deploy.control_plane.requests.callers.api_keys import ApiKeys
from llama_deploy.control_plane.requests.callers.key_callers import KeyCallers
from llama_deploy.errors import StoreLockedError
from llama_deploy.printable import printable
from llama_deploy.state_stores.store_registry import open_state_store, stored_schema_revision
from llama_deploy.types.api_keys import ApiKeyView, CreatedApiKey, NewApiKey
from llama_deploy.types.callers import AccessScope


@dataclass(frozen=True, slots=True)
class KeyAdministration:
    """Where the keys are, as functions."""

    create: Callable[[NewApiKey], Awaitable[CreatedApiKey]]
    list: Callable[[], Awaitable[Sequence[ApiKeyView]]]
    revoke: Callable[[str], Awaitable[ApiKeyView]]


def keys_of_server(client: Client) -> KeyAdministration:
    """Return the keys of a control plane."""

    async def create(new: NewApiKey) -> CreatedApiKey:
        return await client.core.keys.create(
            new.scopes,
            expires_in=new.expires_in_seconds,
            name=new.name,
            tenant=new.tenant,
            subject=new.subject,
        )

    async def list_all() -> Sequence[ApiKeyView]:
        return [key async for key in client.core.keys.list()]

    return KeyAdministration(create, list_all, client.core.keys.revoke)


@asynccontextmanager
async def keys_in_store(uri: str) -> AsyncIterator[KeyAdministration]:
    """Open a state store and yield its keys. An SQLite file is created if there is none.

    Raises:
        CommandError: A control plane uses the file.
        LlamaDeployError: As `open_state_store`.
    """
    is_new = sqlite_file(uri) is not None and await stored_schema_revision(uri) is None
    if not is_new:
        await check_schema(uri)
    try:
        store = await open_state_store(uri)
    except StoreLockedError as exc:
        raise CommandError(
            str(exc),
            hint="let the control plane that uses it do it, with a key that has the scope `admin`: leave out"
            " --store and pass -s URL",
            exit_code=ExitCode.FAILED,
            code=exc.code,
        ) from exc
    async with store:
        keys = ApiKeys(store, KeyCallers(store))
        actor = actor_on_this_machine()

        async def create(new: NewApiKey) -> CreatedApiKey:
            return await keys.create(new, by=actor.subject, actor=actor)

        async def list_all() -> Sequence[ApiKeyView]:
            page = await keys.list()
            found = page.items
            while page.next_cursor is not None:
                page = await keys.list(cursor=page.next_cursor)
                found += page.items
            return found

        yield KeyAdministration(create, list_all, partial(keys.revoke, actor=actor))


async def create_key(
    to: KeyAdministration,
    *,
    scopes: Sequence[AccessScope],
    expires: str,
    as_json: bool,
    **names: str | None,
) -> None:
    """Create a key and print it.

    Args:
        to: Where it is created.
        scopes: What its callers may do.
        expires: An age, or `never`.
        as_json: Whether all that is known of it is printed.
        **names: Its `name`, `tenant` and `subject`.

    Raises:
        CommandError: An option is not valid.
    """
    seconds = None if expires == "never" else age_seconds(expires)
    fields = {"scopes": list(scopes), "expires_in_seconds": seconds, **names}
    try:
        new = NewApiKey.model_validate(fields)
    except ValidationError as exc:
        found = exc.errors()[0]
        option = next((f"--{name}" for name in names if name in found["loc"]), None)
        option = option or ("--expires" if found["loc"] else "--scope")
        raise CommandError(f"{option} is not valid: {found['msg']}") from exc
    created = await to.create(new)
    if as_json:
        typer.echo(created.model_dump_json())
        return
    typer.echo(created.key)
    note(f"This is shown only now. Its id is {created.key_id}, and it {_end_of(created)}.")


async def list_keys(to: KeyAdministration, *, as_json: bool) -> None:
    """Print the keys."""
    found = await to.list()
    if as_json:
        typer.echo(json.dumps({"items": [key.model_dump(mode="json") for key in found]}))
        return
    if not found:
        note("There are no keys.")
        return
    has_owners = any(key.tenant or key.subject for key in found)
    owners = ("tenant", "subject") if has_owners else ()
    rows = [("key", "created", "scopes", *owners, "end", "name")]
    rows += [
        (
            key.key_id,
            _shown(key.created_at),
            printable(", ".join(key.scopes)),
            *((printable(key.tenant or "-"), printable(key.subject or "-")) if has_owners else ()),
            _end_of(key),
            printable(key.name),
        )
        for key in found
    ]
    for line in aligned(rows, width=terminal_width()):
        typer.echo(line)


async def revoke_key(to: KeyAdministration, key_id: str, *, as_json: bool) -> None:
    """Revoke a key and say so.

    Raises:
        ApiKeyNotFoundError: There is no such key.
    """
    revoked = await to.revoke(key_id)
    typer.echo(revoked.model_dump_json() if as_json else f"The key {printable(key_id)} is revoked.")


def _end_of(key: ApiKeyView) -> str:
    if key.revoked_at is not None:
        return f"was revoked {_shown(key.revoked_at)}"
    return "does not expire" if key.expires_at is None else f"expires {_shown(key.expires_at)}"


def _shown(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
