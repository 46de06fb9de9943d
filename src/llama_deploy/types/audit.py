"""The audit log: who has changed what, and who was refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from llama_deploy.types.callers import ResourceKind
from llama_deploy.types.exact_values import Timestamp
from llama_deploy.types.ids import MAX_ID_LENGTH
from llama_deploy.types.owners import SUBJECT_PATTERN, TENANT_PATTERN

MAX_AUDIT_PAGE: Final = 500
"""How many entries a page may have."""

AuditScope = Literal["off", "changes", "all"]
"""Which requests leave an entry. `changes`: all but those that `AuditAction.is_everyday` names."""


class AuditAction(StrEnum):
    """What was done."""

    TASK_SUBMIT = "task.submit"
    TASK_EVENT = "task.event"
    """An event was sent to a running workflow."""
    TASK_CANCEL = "task.cancel"
    TASK_RETRY = "task.retry"
    TASK_MOVE = "task.move"
    TASK_IMPORT = "task.import"
    SESSION_CREATE = "session.create"
    SESSION_STATE = "session.state"
    """The state of a session was written by a client."""
    SESSION_FORK = "session.fork"
    SESSION_DELETE = "session.delete"
    QUESTION_ANSWER = "question.answer"
    QUESTION_REFUSE = "question.refuse"
    QUESTION_ASSIGN = "question.assign"
    QUESTION_CALLBACK = "question.callback"
    """A URL was created that answers a question."""
    SERVICE_DELETE = "service.delete"
    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    TOKEN_CREATE = "token.create"  # noqa: S105 - no secret
    STORE_PURGE = "store.purge"
    ACCESS = "access"
    """A request was refused, because it had no valid key, or one without the right."""

    @property
    def is_everyday(self) -> bool:
        """Whether it is what clients do all the time, so that it is recorded only with `audit` = `all`."""
        return self in _EVERYDAY


_EVERYDAY: Final = frozenset(
    {
        AuditAction.TASK_SUBMIT,
        AuditAction.TASK_EVENT,
        AuditAction.SESSION_CREATE,
        AuditAction.SESSION_STATE,
    }
)


class AuditOutcome(StrEnum):
    """What has become of it."""

    DONE = "done"
    """It was stored in the same transaction as the entry."""
    BEGUN = "begun"
    """It takes several transactions, of which this is the first; a further entry tells its end."""
    DENIED = "denied"
    """It was refused with 401 or 403."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change."""

    subject: str
    """The name of the user, the program or the key."""
    tenant: str
    """That of the key, even if the request acts in another one."""
    key_id: str | None = None
    address: str | None = None
    """The IP address from which the request came: behind a proxy, that of the proxy."""
    acting_for: str | None = None
    """The subject for which the request acts. None: for itself."""
    token: ResourceKind | None = None
    """For what the token was that the caller has used. None: none for one resource."""
    records_all: bool = False
    """Whether everyday actions leave entries, too."""

    def records(self, action: AuditAction) -> bool:
        """Whether an action of this caller leaves an entry."""
        return self.records_all or not action.is_everyday


class AuditEntry(BaseModel):
    """One line of the audit log."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    at: AwareDatetime
    action: str
    """What was done, such as `task.cancel`; those of a newer release are kept."""
    kind: str
    """Of what the target is: `task`, `session`, `question`, `service`, `key`, `token`, `store` or `request`.
    """
    target: str
    """The id or the name of what was changed; of a refused request, its method and path."""
    tenant: str = ""
    """To which tenant the target belongs. Empty: the default one."""
    outcome: str
    """`done`, `begun` or `denied`."""
    subject: str
    """Who has done it: the name of the user, the program or the key. Empty: somebody without a valid key."""
    key_id: str | None = None
    """The API key that was used. None: another kind of key, or none."""
    acting_for: str | None = None
    """The subject for which it was done, if it was not for `subject` itself."""
    address: str | None = None
    """From where: behind a proxy, the address of the proxy. None: not over the network, or not to be seen by
    administrators of a tenant, because an operator has done it."""
    details: Mapping[str, Any] = {}
    """Further facts, which differ by action. Never inputs, events, answers or secrets."""


class AuditPage(BaseModel):
    """A page of the audit log."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    items: list[AuditEntry]
    """The newest first. They may be fewer than `limit`, or none, although more follow: see `next_cursor`."""
    next_cursor: str | None = None
    """The cursor of the next page. None: this is the last one."""


class AuditFilter(BaseModel):
    """Which entries are listed: those that fulfil all conditions."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    action: Annotated[list[AuditAction], Field(max_length=len(AuditAction))] = []
    """One of these actions. Empty: any."""
    target: Annotated[str | None, Field(max_length=MAX_ID_LENGTH)] = None
    """The id or the name of what was changed."""
    subject: Annotated[str | None, Field(max_length=MAX_ID_LENGTH, pattern=SUBJECT_PATTERN)] = None
    """Who has done it."""
    key: Annotated[str | None, Field(max_length=64, pattern=r"^[0-9a-z]+$")] = None
    """The id of the API key that was used."""
    outcome: AuditOutcome | None = None
    tenant: Annotated[str | None, Field(pattern=rf"{TENANT_PATTERN}|^$")] = None
    """To which tenant the target belongs; empty: the default one. Left out: all that the caller may see."""
    after: Timestamp | None = None
    """Not earlier than this."""
    before: Timestamp | None = None
    """Earlier than this."""
