"""Who makes a request, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.types.owners import Owner


class AccessScope(StrEnum):
    """What a caller may do."""

    TASKS_READ = "tasks:read"
    """Read services, sessions, tasks, their results and their events."""
    TASKS_WRITE = "tasks:write"
    """Submit, cancel and retry tasks, send them events, create, change and delete sessions."""
    INBOX_ANSWER = "inbox:answer"
    """List, answer, refuse and assign questions."""
    SERVICES_HOST = "services:host"
    """Run instances of services, and use the simple queue."""
    METRICS_READ = "metrics:read"
    """Read sizes and depths, and the reasons in probes of health."""
    ADMIN = "admin"
    """Everything, keys and purges included."""


OWNER_SCOPES: Final = frozenset({AccessScope.TASKS_READ, AccessScope.TASKS_WRITE, AccessScope.INBOX_ANSWER})
"""What callers may do with what belongs to an owner."""
OPERATOR_SCOPES: Final = frozenset({AccessScope.SERVICES_HOST, AccessScope.METRICS_READ})
"""What is about all tenants, whoever does it."""


class ResourceKind(StrEnum):
    """What a token is for."""

    TASK = "task"
    SESSION = "session"
    STREAM = "stream"
    """The events of one task."""
    QUESTION = "question"


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that a caller may use."""

    kind: ResourceKind
    id: str
    """Of a stream, the id of its task."""


ALL_SCOPES: Final = "*"
"""In `Caller.scopes`: all of them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, and what the caller may do."""

    subject: str
    """The name of the user, the program or the key."""
    tenant: str
    """Whose tasks and sessions the caller works with."""
    scopes: frozenset[str]
    """The rights; `*` is all of them."""
    key_id: str | None = None
    """The API key that the caller has sent. None: it has sent none, or another kind of key."""
    resource: Resource | None = None
    """The only thing that the caller may use. None: there is no such limit."""
    is_bound: bool = False
    """Whether the caller works only with what belongs to its subject, and not with all of the tenant."""
    acted_by: str | None = None
    """The subject that has sent the request, an operator, if it acts for another owner."""

    @property
    def may_do_all(self) -> bool:
        """Whether the caller has all rights."""
        return ALL_SCOPES in self.scopes or AccessScope.ADMIN in self.scopes

    @property
    def owner(self) -> Owner:
        """Whose sessions, tasks and questions the caller works with."""
        return Owner(self.tenant, self.subject if self.is_bound else None)

    @property
    def is_in_default_tenant(self) -> bool:
        """Whether the caller works with all of the default tenant."""
        return not self.tenant and not self.is_bound


ANONYMOUS: Final = Caller(subject="anonymous", tenant=DEFAULT_TENANT, scopes=frozenset({ALL_SCOPES}))
"""Everybody, while authentication is off."""
NOBODY: Final = Caller(subject="", tenant=DEFAULT_TENANT, scopes=frozenset())
"""Who shows no valid key, at a route that needs none."""
