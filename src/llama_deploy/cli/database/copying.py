"""`llamactl db copy`."""

from __future__ import annotations

import json

import typer

from llama_deploy.cli.database.addresses import shown, sqlite_file
from llama_deploy.cli.error_messages import CommandError


async def copy_rows(source: str, target: str, *, as_json: bool) -> None:
    """Copy an SQLite state store to PostgreSQL, and print how many rows of each table.

    Raises:
        CommandError: The addresses are not those of an SQLite file and a PostgreSQL database.
        LlamaDeployError: As `copy_store`.
    """
    path = sqlite_file(source)
    if path is None or not target.startswith(("postgresql:", "postgres:")):
        raise CommandError(
            "only a SQLite state store can be copied, and only to PostgreSQL",
            hint="write: llamactl db copy sqlite:///path.db postgresql://user:password@host/database",
        )
    from llama_deploy.state_stores.sqlite_to_postgresql import copy_store  # noqa: PLC0415 - an extra

    counts = await copy_store(path, target)
    if as_json:
        typer.echo(json.dumps({"rows": counts}))
        return
    rows = sum(counts.values())
    typer.echo(f"{rows} rows of {len(counts)} tables were copied to {shown(target)}.")
