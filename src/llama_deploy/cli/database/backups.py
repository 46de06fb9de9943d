"""`llamactl db backup` and `llamactl db restore`."""

from __future__ import annotations

import asyncio
import json
import shlex
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import typer

from llama_deploy.cli.database.addresses import check_schema, shown, sqlite_file
from llama_deploy.cli.database.sizes import shown_bytes
from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.control_plane.maintenance.restored_tasks import take_back_running
from llama_deploy.errors import StoreLockedError
from llama_deploy.printable import printable
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.state_stores.sqlite_backup import back_up, restore
from llama_deploy.state_stores.store_registry import open_state_store


async def back_up_store(uri: str, file: Path, *, as_json: bool) -> None:
    """Write a backup of an SQLite state store.

    Raises:
        CommandError: The store is not an SQLite file.
        LlamaDeployError: As `back_up`.
    """
    path = sqlite_file(uri)
    if path is None:
        command = f"pg_dump --format=custom --file={shlex.quote(str(file))} {shlex.quote(shown(uri))}"
        raise CommandError(
            "a backup of PostgreSQL is made by its own tools, and this command did nothing",
            hint=f"run: {command} (it asks for user and password, or takes PGUSER and PGPASSFILE)",
        )
    size = await in_own_thread("backup", partial(back_up, path, file))
    facts = {"file": str(file), "bytes": size}
    typer.echo(json.dumps(facts) if as_json else printable(f"{file}: {shown_bytes(size)}"))


async def restore_store(uri: str, file: Path | None, *, replace: bool, as_json: bool) -> None:
    """Put a backup in the place of an SQLite state store.

    Raises:
        CommandError: The store is not an SQLite file or is in use, or no backup is named.
        LlamaDeployError: As `restore`.
    """
    if file is None:
        raise CommandError("no backup is named", hint="pass the file that `llamactl db backup` has written")
    path = sqlite_file(uri)
    if path is None:
        target = shlex.quote(shown(uri))
        raise CommandError(
            "PostgreSQL is restored by its own tools, and this command did nothing",
            hint=f"run: pg_restore --clean --if-exists --dbname={target} {shlex.quote(str(file))} while no "
            "control plane runs, and then `llamactl db restore --in-place` with the same --store",
        )
    counts: list[int] = []
    try:
        kept = await in_own_thread(
            "restore",
            partial(
                restore,
                file,
                path,
                prepare=lambda copy: counts.append(asyncio.run(_take_back_in(copy))),
                replace=replace,
            ),
        )
    except StoreLockedError as exc:
        raise CommandError(
            str(exc),
            hint="stop the control plane that uses the file, and restore again",
            exit_code=ExitCode.FAILED,
            code=exc.code,
            facts=exc.facts(),
        ) from exc
    facts = {"taken_back": counts[0], "replaced": None if kept is None else str(kept)}
    told = [f"{path} was restored. {counts[0]} running attempts were taken back."]
    if kept is not None:
        told.append(f"What was there before is in {kept}.")
    typer.echo(json.dumps(facts) if as_json else printable(" ".join(told)))


async def take_back_in_place(uri: str, file: Path | None, *, as_json: bool) -> None:
    """Take back what runs in a store that is a copy already.

    Raises:
        CommandError: A backup is named too.
        StoreLockedError: A control plane uses it.
        LlamaDeployError: As `open_state_store`.
    """
    if file is not None:
        raise CommandError("--in-place takes no file", hint="leave out the file, or --in-place")
    await check_schema(uri)
    async with await open_state_store(uri) as store:
        if await store.has_company():
            raise StoreLockedError("a control plane uses this state store: stop all of them first")
        count = await take_back_running(store, _config(), clock=lambda: datetime.now(UTC))
    typer.echo(json.dumps({"taken_back": count}) if as_json else f"{count} running attempts were taken back.")


async def _take_back_in(copy: Path) -> int:
    async with await SQLiteStateStore.at(copy) as store:
        return await take_back_running(store, _config(), clock=lambda: datetime.now(UTC))


def _config() -> ControlPlaneConfig:
    with settings_of(ControlPlaneConfig):
        return ControlPlaneConfig()
