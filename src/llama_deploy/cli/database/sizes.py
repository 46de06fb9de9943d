"""`llamactl db size`."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import typer

from llama_deploy.cli.database.addresses import check_schema, sqlite_file
from llama_deploy.client import Client
from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.printable import printable
from llama_deploy.state_stores.base import StoreSizes
from llama_deploy.state_stores.sqlite_backup import check_store
from llama_deploy.state_stores.sqlite_sizes import measure
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types.retention import StorageView, TableSize

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024


async def print_size_of_store(uri: str, *, as_json: bool) -> None:
    """Measure a store and print its size.

    Raises:
        LlamaDeployError: As `open_state_store`.
    """
    path = sqlite_file(uri)
    if path is None:
        await check_schema(uri)
        async with await open_state_store(uri) as store:
            sizes = await store.sizes(exact=True)
    else:
        check_store(path, what="the state store")
        sizes = await in_own_thread("sizes", partial(measure, path, exact=True))
    _print(_view(sizes), as_json=as_json)


async def print_size_of_server(client: Client, *, as_json: bool) -> None:
    """Ask a control plane for the size of its store and print it.

    Raises:
        UnavailableError: The control plane does not respond.
    """
    _print(await client.core.storage.size(), as_json=as_json)


def _view(sizes: StoreSizes) -> StorageView:
    return StorageView(
        store=sizes.store,
        total_bytes=sizes.total_bytes,
        free_bytes=sizes.free_bytes,
        log_bytes=sizes.log_bytes,
        tables=[TableSize(name=each.name, rows=each.rows, bytes=each.bytes) for each in sizes.tables],
    )


def _print(view: StorageView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    typer.echo(f"{view.store}: {shown_bytes(view.total_bytes)}")
    if view.free_bytes is not None:
        typer.echo(f"  free for new rows: {shown_bytes(view.free_bytes)}")
    if view.log_bytes is not None:
        typer.echo(f"  write-ahead log: {shown_bytes(view.log_bytes)}")
    for status, at in view.oldest_ended.items():
        typer.echo(f"  oldest {status.replace('_', ' ')} task: ended {shown_time(at)}")
    width = max((len(table.name) for table in view.tables), default=0)
    for table in view.tables:
        rows = "not counted" if table.rows is None else f"{table.rows:,} rows"
        typer.echo(printable(f"  {table.name:{width}}  {shown_bytes(table.bytes):>12}  {rows:>16}"))


def shown_time(at: datetime) -> str:
    """Return a time for people."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def shown_bytes(size: int | None) -> str:
    """Return a number of bytes for people."""
    if size is None:
        return "not measured"
    value, unit = float(size), 0
    while value >= _STEP and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size} B"
