"""`llamactl db`: the schema of a state store."""

from __future__ import annotations

import typer

from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.store_registry import open_state_store, stored_schema_revision


async def print_current(uri: str) -> None:
    """Print which schema a store has, and whether this release works with it.

    Raises:
        LlamaDeployError: As `open_state_store`.
    """
    revision = await stored_schema_revision(uri)
    if revision is None:
        typer.echo(f"no schema; `llamactl db upgrade` brings it to {SCHEMA_REVISION}")
    elif revision == SCHEMA_REVISION:
        typer.echo(f"{revision}, with which this release works")
    else:
        typer.echo(f"{revision}; this release works with {SCHEMA_REVISION}")


async def upgrade(uri: str) -> None:
    """Bring the schema of a store to that of this release, and print what was done.

    Raises:
        LlamaDeployError: As `open_state_store`.
    """
    before = await stored_schema_revision(uri)
    if before == SCHEMA_REVISION:
        typer.echo(f"{before}: nothing to do")
        return
    async with await open_state_store(uri):
        pass
    typer.echo(f"{before or 'no schema'} -> {SCHEMA_REVISION}")
