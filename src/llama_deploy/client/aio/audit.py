"""The audit log of a control plane, for its administrators."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any

from llama_deploy.client.aio.server_api import ServerApi
from llama_deploy.types.audit import MAX_AUDIT_PAGE, AuditAction, AuditEntry, AuditOutcome, AuditPage


class AuditLog:
    """Lists who has changed what, for callers with the scope `admin`. See `Client.core.audit`."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    async def list(
        self,
        *,
        action: AuditAction | str | Sequence[AuditAction | str] = (),
        target: str | None = None,
        subject: str | None = None,
        key: str | None = None,
        outcome: AuditOutcome | str | None = None,
        tenant: str | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
    ) -> AsyncGenerator[AuditEntry]:
        """Yield the entries that fulfil all conditions, the newest first.

        Args:
            action: What was done, such as `task.cancel`, or several of these. Empty: anything.
            target: The id or the name of what was changed.
            subject: Who has done it.
            key: The id of the API key that was used.
            outcome: `done`, `begun` or `denied`.
            tenant: To whom the target belongs; empty: the default tenant. None: all that this client's key
                may see.
            after: Not earlier than this; aware.
            before: Earlier than this; aware.

        Raises:
            InvalidRequestError: A condition is malformed.
            PermissionDeniedError: This client's key is of another tenant, or does not have the scope.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        conditions: dict[str, Any] = {
            "action": [action] if isinstance(action, str) else list(action),
            "target": target,
            "subject": subject,
            "key": key,
            "outcome": outcome,
            "tenant": tenant,
            "after": None if after is None else after.isoformat(),
            "before": None if before is None else before.isoformat(),
        }
        params = {name: value for name, value in conditions.items() if value is not None}
        cursor: str | None = None
        while True:
            place = {} if cursor is None else {"cursor": cursor}
            page = await self._api.get(
                "/audit", AuditPage.model_validate, **params, **place, limit=MAX_AUDIT_PAGE
            )
            for entry in page.items:
                yield entry
            cursor = page.next_cursor
            if cursor is None:
                return
