"""`llamactl db purge`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import typer
from pydantic import ValidationError

from llama_deploy.cli.ages import age_seconds
from llama_deploy.cli.database.addresses import check_schema, sqlite_file
from llama_deploy.cli.database.local_actor import actor_on_this_machine
from llama_deploy.cli.database.sizes import shown_time
from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.control_plane.maintenance.storage import Storage
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.errors import StoreLockedError
from llama_deploy.printable import printable
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types.retention import PurgeAnswer, PurgeRequest

Ask = Callable[[PurgeRequest], Awaitable[PurgeAnswer]]


@dataclass(frozen=True, slots=True)
class PurgeOptions:
    """The options of the command."""

    older_than: str | None
    statuses: list[str]
    service: str | None
    dry_run: bool
    yes: bool
    as_json: bool

    def request(self) -> PurgeRequest:
        """Return the request of a dry run.

        Raises:
            CommandError: An option is not valid.
        """
        age = None if self.older_than is None else age_seconds(self.older_than)
        fields = {"older_than_seconds": age, "status": self.statuses, "service": self.service}
        try:
            return PurgeRequest.model_validate({**fields, "dry_run": True})
        except ValidationError as exc:
            found = exc.errors()[0]
            option = str(found["loc"][0]).removesuffix("_seconds").replace("_", "-")
            raise CommandError(f"--{option} is not valid: {found['msg']}") from exc


async def purge_store(uri: str, options: PurgeOptions) -> None:
    """Remove ended tasks of a store that this process opens.

    Raises:
        CommandError: An option is not valid, or a control plane uses the file.
        LlamaDeployError: As `open_state_store`.
    """
    request = options.request()
    await check_schema(uri)
    with settings_of(ControlPlaneConfig):
        config = ControlPlaneConfig()
    try:
        store = await open_state_store(uri)
    except StoreLockedError as exc:
        raise CommandError(
            str(exc),
            hint="let the control plane that uses it remove the tasks: llamactl db purge -s URL ...",
            exit_code=ExitCode.FAILED,
        ) from exc
    async with store:
        storage = Storage(store, config, removals=KnownRemovals(), clock=lambda: datetime.now(UTC))
        by = actor_on_this_machine()
        await _purge(partial(storage.purge, by=by), request, options)
        if sqlite_file(uri) is not None and not options.dry_run:
            while await store.shrink(max_pages=1000):
                pass


async def purge_server(client: Client, options: PurgeOptions) -> None:
    """Let a control plane remove ended tasks.

    Raises:
        CommandError: An option is not valid.
        UnavailableError: The control plane does not respond.
    """
    await _purge(client.core.storage.purge, options.request(), options)


async def _purge(ask: Ask, request: PurgeRequest, options: PurgeOptions) -> None:
    found = await ask(request)
    count = sum(each.tasks for each in found.matching)
    if options.dry_run:
        typer.echo(found.model_dump_json() if options.as_json else _described(found, count))
        return
    if not options.yes:
        _confirm(found, count)
    # What is removed is what was shown: nothing that ended since then.
    age = (datetime.now(UTC) - found.before).total_seconds()
    again = request.model_copy(update={"dry_run": False, "older_than_seconds": max(age, 0.0)})
    removed = 0
    while True:
        answer = await ask(again)
        removed += answer.removed
        if not answer.more:
            break
    if options.as_json:
        typer.echo(answer.model_copy(update={"removed": removed}).model_dump_json())
    else:
        typer.echo(f"{removed} {'task was' if removed == 1 else 'tasks were'} removed.")


def _described(found: PurgeAnswer, count: int) -> str:
    lines = [f"{count} {'task' if count == 1 else 'tasks'} ended before {shown_time(found.before)}:"]
    lines += [
        f"  {each.service_name}, {each.status.value}: {each.tasks},"
        f" the oldest ended {shown_time(each.oldest)}"
        for each in found.matching
    ]
    return "\n".join(
        map(printable, lines if count else [f"No tasks ended before {shown_time(found.before)}."])
    )


def _confirm(found: PurgeAnswer, count: int) -> None:
    if not count:
        return
    if not sys.stdin.isatty():
        raise CommandError(
            f"this would remove {count} tasks, and there is no terminal to ask in",
            hint="pass --yes to remove them, or --dry-run to see them",
        )
    typer.echo(_described(found, count), err=True)
    if not typer.confirm("Remove them with their events and results?", err=True):
        raise CommandError("nothing was removed", exit_code=ExitCode.FAILED)
