"""`llamactl audit`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from llama_deploy.cli.ages import age_seconds
from llama_deploy.cli.output import note
from llama_deploy.cli.text_tables import aligned, terminal_width
from llama_deploy.client import Client
from llama_deploy.printable import printable
from llama_deploy.types.audit import AuditEntry, AuditOutcome

_HEADER = ("time", "who", "from", "action", "target", "")


async def list_audit(
    client: Client, conditions: Mapping[str, Any], *, since: str | None, limit: int, as_json: bool
) -> None:
    """Print entries of the audit log, the newest first.

    Args:
        client: Asks the control plane.
        conditions: As for `client.core.audit.list`.
        since: How far back they go, as an age. None: without a limit.
        limit: How many are printed at most.
        as_json: Whether each is printed as a line of JSON.

    Raises:
        CommandError: The age is malformed.
    """
    after = None if since is None else datetime.now(UTC) - timedelta(seconds=age_seconds(since))
    found: list[AuditEntry] = []
    is_cut = False
    async with aclosing(client.core.audit.list(**conditions, after=after)) as entries:
        async for entry in entries:
            if len(found) == limit:
                is_cut = True
                break
            found.append(entry)
    if as_json:
        for entry in found:
            typer.echo(entry.model_dump_json())
        return
    if not found:
        note("There are no such entries.")
        return
    for line in aligned([_HEADER, *map(_row, found)], width=terminal_width()):
        typer.echo(line)
    if is_cut:
        note("There are older entries: raise --limit to see them.")


def _row(entry: AuditEntry) -> Sequence[str]:
    details = [f"{name}={_text(value)}" for name, value in entry.details.items()]
    who = entry.subject or "-"
    if entry.acting_for is not None:
        who = f"{who} for {entry.acting_for}"
    if entry.outcome != AuditOutcome.DONE:
        details.insert(0, entry.outcome)
    target = f"{entry.tenant}/{entry.target}" if entry.tenant else entry.target
    texts = (who, entry.address or "-", entry.action, target, " ".join(details))
    return (f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}", *map(printable, texts))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
