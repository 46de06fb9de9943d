"""The entries of the audit log that belong to the changes of a transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from llama_deploy.state_stores.audit_repository import AuditRecord
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.types.audit import Actor, AuditAction, AuditOutcome
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.keys import DEFAULT_TENANT, public_id, tenant_of

_MAX_CHARACTERS: Final = 256
"""How much is kept of each text."""


def audit_record(
    by: Actor,
    action: AuditAction,
    target: str,
    *,
    at: datetime,
    tenant: str = DEFAULT_TENANT,
    outcome: AuditOutcome = AuditOutcome.DONE,
    **details: Any,
) -> AuditRecord:
    """Return an entry.

    Args:
        by: Who has done it.
        action: What was done.
        target: To what: an id as users see it, or a name.
        at: When.
        tenant: To whom the target belongs.
        outcome: What has become of it.
        **details: Further facts, but for those that are None. They must hold neither inputs nor secrets.
    """
    facts = {name: _clipped(value) for name, value in details.items() if value is not None}
    if by.token is not None:
        facts["token"] = by.token.value
    return AuditRecord(
        at=at,
        action=action.value,
        target=_clipped(target),
        tenant=tenant,
        outcome=outcome.value,
        subject=by.subject,
        home=by.tenant,
        key_id=by.key_id,
        acting_for=by.acting_for,
        address=by.address,
        details=encode_json(facts) if facts else None,
    )


def _clipped(value: Any) -> Any:
    return value[:_MAX_CHARACTERS] if isinstance(value, str) else value


class AuditRows:
    """What the commands of a transaction have done, and for whom.

    Args:
        tx: Stores it.
        now: The time of the transaction.
    """

    __slots__ = ("_entries", "_now", "_tx", "by")

    def __init__(self, tx: StoreTransaction, *, now: datetime) -> None:
        self._tx = tx
        self._now = now
        self._entries: list[AuditRecord] = []
        self.by: Actor | None = None
        """Whose command is run. None: nobody's, or it leaves no entries."""

    def note(self, action: AuditAction, key: str, **details: Any) -> None:
        """The command has changed a task or a session.

        Args:
            action: What it has done.
            key: The key of what it has changed.
            **details: As those of `audit_record`.
        """
        if self.by is not None:
            self.note_public(action, public_id(key), tenant=tenant_of(key), **details)

    def note_public(self, action: AuditAction, target: str, *, tenant: str, **details: Any) -> None:
        """The command has changed something that has no key, such as a question or a service."""
        if self.by is not None and self.by.records(action):
            entry = audit_record(self.by, action, target, at=self._now, tenant=tenant, **details)
            self._entries.append(entry)

    def flush(self) -> None:
        """Store the entries."""
        if self._entries:
            self._tx.audit.append(self._entries)
