"""`llamactl db`: the schema of a state store."""

from __future__ import annotations

import json

import typer

from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.store_registry import open_state_store, stored_schema_revision


async def print_current(uri: str, *, as_json: bool) -> None:
    """Print the schema revision of a store, and whether this release supports it.

    Raises:
        LlamaDeployError: As `open_state_store`.
    """
    revision = await stored_schema_revision(uri)
    if as_json:
        typer.echo(json.dumps({"revision": revision, "expected": SCHEMA_REVISION}))
    elif revision is None:
        typer.echo(f"no schema; `llamactl db upgrade` creates revision {SCHEMA_REVISION}")
    elif revision == SCHEMA_REVISION:
        typer.echo(f"{revision}, up to date")
    else:
        typer.echo(f"{revision}; this release requires {SCHEMA_REVISION}")


async def upgrade(uri: str, *, as_json: bool) -> None:
    """Upgrade the schema of a store to that of this release, and print what changed.

    Raises:
        LlamaDeployError: As `open_state_store`.
    """
    before = await stored_schema_revision(uri)
    if before != SCHEMA_REVISION:
        async with await open_state_store(uri):
            pass
    if as_json:
        typer.echo(json.dumps({"before": before, "revision": SCHEMA_REVISION}))
    elif before == SCHEMA_REVISION:
        typer.echo(f"{before}, already up to date")
    else:
        typer.echo(f"{before or 'no schema'} -> {SCHEMA_REVISION}")
