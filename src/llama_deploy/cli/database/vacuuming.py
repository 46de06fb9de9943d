"""`llamactl db vacuum`."""

from __future__ import annotations

import json
from functools import partial

import typer

from llama_deploy.cli.database.addresses import check_schema, shown, sqlite_file
from llama_deploy.cli.database.sizes import shown_bytes
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.errors import StoreLockedError
from llama_deploy.state_stores.sqlite_backup import vacuum


async def vacuum_store(uri: str, *, as_json: bool) -> None:
    """Return the unused space of a store to its disk, and print how much.

    Raises:
        CommandError: A control plane uses the SQLite file.
        LlamaDeployError: The store cannot be used, or does not answer.
    """
    path = sqlite_file(uri)
    if path is None:
        await check_schema(uri)
        from llama_deploy.state_stores.postgresql_vacuum import vacuum_tables  # noqa: PLC0415 - an extra

        tables = await vacuum_tables(uri)
        told = (
            f"VACUUM (ANALYZE) was run on {len(tables)} tables of {shown(uri)}. PostgreSQL uses their free"
            " space for new rows. To return it to the disk, VACUUM FULL writes a table again, and locks it"
            " meanwhile."
        )
        typer.echo(json.dumps({"store": "postgresql", "tables": tables}) if as_json else told)
        return
    try:
        before, after = await in_own_thread("vacuum", partial(vacuum, path))
    except StoreLockedError as exc:
        raise CommandError(
            str(exc),
            hint="a running control plane returns free space by itself, a little at a time; stop it to write "
            "the whole file again",
            exit_code=ExitCode.FAILED,
        ) from exc
    facts = {"store": "sqlite", "before_bytes": before, "after_bytes": after}
    typer.echo(json.dumps(facts) if as_json else f"{shown_bytes(before)} -> {shown_bytes(after)}")
