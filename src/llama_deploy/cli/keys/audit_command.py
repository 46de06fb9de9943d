"""The command `llamactl audit`. It imports its implementation when it runs."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; imports as described above
from __future__ import annotations

from typing import Annotated

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.options import AsJson
from llama_deploy.types.audit import AuditAction, AuditOutcome


def audit(  # noqa: PLR0913, PLR0917 - typer
    context: typer.Context,
    action: Annotated[
        list[AuditAction] | None,
        typer.Option(metavar="ACTION", help="What was done. Repeat the option for several actions."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="ID", help="The id or the name of what was changed.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="SUBJECT", help="Who has done it.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY_ID", help="With which API key.")] = None,
    outcome: Annotated[AuditOutcome | None, typer.Option(help="What has become of it.")] = None,
    tenant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The tenant of the target; empty: the default tenant."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE", help="How far back, such as `12h` or `30d`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many entries to show.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List who has changed what, and who was refused.

    The newest come first. It needs a key with the scope `admin`; one of a tenant shows entries of that
    tenant. Actions are `task.cancel`, `session.delete`, `key.create` and others; `access` are requests that
    were refused.
    """
    from llama_deploy.cli.keys import audit as command

    conditions = {
        "action": action or (),
        "target": target,
        "subject": by,
        "key": key,
        "outcome": outcome,
        "tenant": tenant,
    }
    with_client(
        context.obj,
        lambda client: command.list_audit(client, conditions, since=since, limit=limit, as_json=as_json),
    )
