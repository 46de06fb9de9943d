"""The commands of `llamactl db`. Each imports its implementation when it runs."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports as described above
from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.error_messages import reported
from llama_deploy.cli.options import AsJson, OptionalStore, Settings, Store
from llama_deploy.cli.shared_options import CommandGroup

db = CommandGroup(
    help="Manage a state store: its schema, size, backups and removals.",
    no_args_is_help=True,
)

_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@db.command()
def current(context: typer.Context, store: Store, as_json: AsJson = False) -> None:
    """Show the schema revision of a state store. Changes nothing."""
    from llama_deploy.cli.database.schema import print_current

    _with_store(context.obj, print_current(store, as_json=as_json), command="db current")


@db.command()
def upgrade(context: typer.Context, store: Store, as_json: AsJson = False) -> None:
    """Upgrade a state store to the schema of this release. A control plane does the same when it starts.

    It is safe to run this several times at once, and with PostgreSQL while control planes are running.
    """
    from llama_deploy.cli.database.schema import upgrade as upgrade_store

    _with_store(context.obj, upgrade_store(store, as_json=as_json), command="db upgrade")


@db.command()
def size(context: typer.Context, store: OptionalStore = None, as_json: AsJson = False) -> None:
    """Show how large a state store and its tables are. Changes nothing.

    With --store, all of the store is measured, also while a control plane uses it. With --server, the control
    plane answers, and does not measure large tables.
    """
    from llama_deploy.cli.database import sizes

    settings: Settings = context.obj
    if store is None or "server" in settings.given:
        with_client(settings, lambda client: sizes.print_size_of_server(client, as_json=as_json))
    else:
        _with_store(settings, sizes.print_size_of_store(store, as_json=as_json), command="db size")


@db.command()
def purge(
    context: typer.Context,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Remove tasks that ended longer ago than this, such as `30d`, `12h` or `90m`. Default: the "
            "setting retention_task_days.",
        ),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS",
            help="Only tasks with this status: `succeeded`, `failed`, `cancelled` or `timed_out`. Repeat the "
            "option for several.",
        ),
    ] = None,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only tasks that were submitted to this service.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed.")] = False,
    store: OptionalStore = None,
    yes: _Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove ended tasks now, with their events and results. Their ids stay for retention_removed_days.

    A control plane does it, or with --store this command, which with SQLite needs the control plane to be
    stopped. Tasks are removed in short transactions: you can interrupt the command, and run it again.
    """
    from llama_deploy.cli.database import purging

    settings: Settings = context.obj
    options = purging.PurgeOptions(
        older_than=older_than,
        statuses=status or [],
        service=service,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
    if store is None or "server" in settings.given:
        with_client(settings, lambda client: purging.purge_server(client, options))
    else:
        _with_store(settings, purging.purge_store(store, options), command="db purge")


@db.command()
def vacuum(context: typer.Context, store: Store, as_json: AsJson = False) -> None:
    """Return unused space to the disk.

    With SQLite, the file is written again, for which its control plane must be stopped. That is needed only
    after large purges, or once for a file of another program: a control plane returns free space by itself.
    With PostgreSQL, this runs VACUUM (ANALYZE) on the tables, while control planes are running.
    """
    from llama_deploy.cli.database.vacuuming import vacuum_store

    _with_store(context.obj, vacuum_store(store, as_json=as_json), command="db vacuum")


@db.command()
def backup(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", resolve_path=True, help="The file to write, which must not exist."),
    ],
    store: Store,
    as_json: AsJson = False,
) -> None:
    """Write a backup of a SQLite state store to a file.

    A control plane may be using the store meanwhile.
    For PostgreSQL, use pg_dump; this command prints how.
    """
    from llama_deploy.cli.database.backups import back_up_store

    _with_store(context.obj, back_up_store(store, file, as_json=as_json), command="db backup")


@db.command()
def restore(
    context: typer.Context,
    store: Store,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", resolve_path=True, show_default=False, help="The backup."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="There may be a state store already; keep it under another name."),
    ] = False,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="The state store is a copy already, for example by pg_restore. Only take back what was "
            "running when the copy was made.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of a state store.

    No control plane may be using the store.
    Tasks that were running when the backup was made get their next attempt, and continue after their last
    finished step. What instances still report for earlier attempts is refused. Tasks that were submitted
    after the backup are lost, and tasks that have ended since run again.
    """
    from llama_deploy.cli.database.backups import restore_store, take_back_in_place

    work = (
        take_back_in_place(store, file, as_json=as_json)
        if in_place
        else restore_store(store, file, replace=replace, as_json=as_json)
    )
    _with_store(context.obj, work, command="db restore")


@db.command()
def copy(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SQLITE", help="Such as `sqlite:///path.db`; its control plane is stopped."),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="POSTGRESQL", help="Such as `postgresql://user:password@host/database`, without rows."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Copy a SQLite state store to an empty PostgreSQL database.

    If the copy fails, nothing is copied.
    Then start control planes with the new store, and the same message queue: tasks go on where they were.
    """
    from llama_deploy.cli.database.copying import copy_rows

    _with_store(context.obj, copy_rows(source, target, as_json=as_json), command="db copy")


def _with_store(settings: Settings, work: Coroutine[Any, Any, None], *, command: str) -> None:
    settings.logs(level=logging.WARNING)
    with reported(settings), closing(work):
        settings.reject("server", "insecure", "timeout", command=command)
        asyncio.run(work)
