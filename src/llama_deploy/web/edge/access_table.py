"""Which scope each route of each server needs, and how it treats tenants.

A route without an entry cannot be built.

The application of a server looks up its routes here, and so do the shortcuts. Paths are written as in the
OpenAPI document. What FastAPI adds for the documentation (`/docs`, `/openapi.json`) is not a route of an API:
any caller with a key may read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from llama_deploy.health import LIVE_PATH, READY_PATH
from llama_deploy.metric_texts import METRICS_PATH
from llama_deploy.types.callers import AccessScope, Caller, ResourceKind


class Tenancy(StrEnum):
    """How a route treats tenants, and callers that are bound to a subject."""

    SHARED = "shared"
    """It answers all callers alike."""
    OWN = "own"
    """It is about what belongs to the owner of the caller, and nothing else."""
    TENANT = "tenant"
    """As `own`, but not for callers that are bound to a subject."""
    OPERATOR = "operator"
    """It is about all tenants, so only for callers that work with the default tenant."""

    def admits(self, caller: Caller) -> bool:
        """Whether a caller of this tenant, perhaps bound to a subject, may use the route."""
        match self:
            case Tenancy.OPERATOR:
                return caller.is_in_default_tenant
            case Tenancy.TENANT:
                return not caller.is_bound
            case _:
                return True


class IdKind(StrEnum):
    """Of what an id is."""

    TASK = "task"
    SESSION = "session"
    QUESTION = "question"
    PREFIX = "prefix"
    """The characters with which ids of tasks begin."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a caller needs for a route."""

    tenancy: Tenancy
    """How the route treats tenants."""
    scopes: tuple[AccessScope, ...] = ()
    """Any one of these. Empty: every caller with a valid key may use the route."""
    is_open: bool = False
    """Whether nobody needs a key."""
    resources: Mapping[ResourceKind, str] = field(default_factory=dict)
    """The tokens with which the route may be used: the kind of the resource, and the parameter of the path
    that has its id."""
    ids: Mapping[str, IdKind] = field(default_factory=dict)
    """The ids in its requests beside those in the path: parameters of the endpoint, with dots before the
    fields of bodies."""
    may_be_missing: bool = False
    """Whether the route also answers for a session in its path that does not exist."""

    def is_met_by(self, caller: Caller) -> bool:
        """Whether a caller may use the route, but for the limit to a resource."""
        return (
            self.is_open
            or caller.may_do_all
            or (not self.scopes and bool(caller.subject))
            or any(scope in caller.scopes for scope in self.scopes)
        )

    def is_for(self, caller: Caller, path_parameters: Mapping[str, Any]) -> bool:
        """Whether the route is about the only resource that a caller may use, if there is such a limit."""
        resource = caller.resource
        if resource is None or self.is_open:
            return True
        parameter = self.resources.get(resource.kind)
        # Paths are routed as they were sent, percent-encoded.
        return parameter is not None and unquote(str(path_parameters.get(parameter, ""))) == resource.id


AccessTable: TypeAlias = Mapping[tuple[str, str], Requirement]
"""Requirements by method and path."""

_OPEN: Final = Requirement(Tenancy.SHARED, is_open=True)
_ANY_KEY: Final = Requirement(Tenancy.SHARED)
_READ: Final = Requirement(Tenancy.OWN, (AccessScope.TASKS_READ,))
_WRITE: Final = Requirement(Tenancy.OWN, (AccessScope.TASKS_WRITE,))
_QUESTIONS: Final = Requirement(Tenancy.OWN, (AccessScope.INBOX_ANSWER, AccessScope.TASKS_READ))
_ANSWER: Final = Requirement(Tenancy.OWN, (AccessScope.INBOX_ANSWER,))
_HOST: Final = Requirement(Tenancy.OPERATOR, (AccessScope.SERVICES_HOST,))
_READ_STATE: Final = Requirement(Tenancy.OWN, (AccessScope.TASKS_READ, AccessScope.SERVICES_HOST))
_WRITE_STATE: Final = Requirement(Tenancy.OWN, (AccessScope.TASKS_WRITE, AccessScope.SERVICES_HOST))
_METRICS: Final = Requirement(Tenancy.OPERATOR, (AccessScope.METRICS_READ,))
_READ_BACKLOG: Final = Requirement(Tenancy.OPERATOR, (AccessScope.METRICS_READ, AccessScope.TASKS_READ))
_KEYS: Final = Requirement(Tenancy.TENANT, (AccessScope.ADMIN,))
_PURGE: Final = Requirement(Tenancy.OPERATOR, (AccessScope.ADMIN,))


def _naming(needed: Requirement, **ids: IdKind) -> Requirement:
    """Return the requirement of a route whose requests have these ids, with `__` for the dots."""
    return replace(needed, ids={name.replace("__", "."): kind for name, kind in ids.items()})


def _with_tokens(needed: Requirement, *kinds: ResourceKind) -> Requirement:
    """Return a requirement that tokens for these kinds of resources meet too."""
    return replace(needed, resources={kind: _PARAMETERS[kind] for kind in kinds})


_PARAMETERS: Final = {
    ResourceKind.TASK: "task_id",
    ResourceKind.STREAM: "task_id",
    ResourceKind.SESSION: "session_id",
    ResourceKind.QUESTION: "question_id",
}
_READ_TASK: Final = _with_tokens(_READ, ResourceKind.TASK)
_WRITE_TASK: Final = _with_tokens(_WRITE, ResourceKind.TASK)
_READ_STREAM: Final = _with_tokens(_READ, ResourceKind.TASK, ResourceKind.STREAM)
_READ_SESSION: Final = _with_tokens(_READ, ResourceKind.SESSION)
_WRITE_SESSION: Final = _with_tokens(_WRITE, ResourceKind.SESSION)
_READ_SESSION_TASK: Final = _with_tokens(_READ, ResourceKind.SESSION, ResourceKind.TASK)
_WRITE_SESSION_TASK: Final = _with_tokens(_WRITE, ResourceKind.SESSION, ResourceKind.TASK)
_READ_SESSION_STREAM: Final = _with_tokens(
    _READ, ResourceKind.SESSION, ResourceKind.TASK, ResourceKind.STREAM
)
_READ_QUESTION: Final = _with_tokens(_QUESTIONS, ResourceKind.QUESTION)
_ANSWER_QUESTION: Final = _with_tokens(_ANSWER, ResourceKind.QUESTION)

_HEALTH: Final[AccessTable] = {
    ("GET", LIVE_PATH): _OPEN,
    ("GET", READY_PATH): _OPEN,
    ("GET", "/health"): _ANY_KEY,
}

_SESSION: Final = "/sessions/{session_id}"
_SESSION_TASK: Final = "/sessions/{session_id}/tasks/{task_id}"

CONTROL_PLANE_ACCESS: Final[AccessTable] = {
    **_HEALTH,
    ("GET", "/"): _ANY_KEY,
    ("GET", "/queue_config"): _HOST,
    # -- services and their instances
    ("POST", "/services/register"): _HOST,
    ("POST", "/services/deregister"): _HOST,
    ("GET", "/services"): _READ,
    ("GET", "/services/{service_name}"): _READ,
    ("GET", "/services/{service_name}/backlog"): _READ_BACKLOG,
    ("POST", "/attempts/claim"): _HOST,
    ("POST", "/attempts/part"): _HOST,
    ("POST", "/attempts/journal"): _HOST,
    ("POST", "/attempts/report"): _HOST,
    ("POST", "/attempts/release"): _HOST,
    ("POST", "/instances/heartbeat"): _HOST,
    ("POST", "/instances/death"): _HOST,
    # -- sessions
    ("GET", "/sessions"): _naming(_READ, after=IdKind.SESSION),
    ("POST", "/sessions/create"): _naming(_WRITE, options__session_id=IdKind.SESSION),
    ("GET", _SESSION): _READ_SESSION,
    ("POST", f"{_SESSION}/delete"): replace(_WRITE, may_be_missing=True),
    ("GET", f"{_SESSION}/tasks"): _naming(_READ_SESSION, after=IdKind.TASK),
    ("POST", f"{_SESSION}/tasks"): _naming(
        _WRITE_SESSION, task_def__task_id=IdKind.TASK, task_def__session_id=IdKind.SESSION
    ),
    ("GET", f"{_SESSION}/current_task"): _READ_SESSION,
    ("GET", f"{_SESSION_TASK}/result"): _READ_SESSION_TASK,
    ("GET", f"{_SESSION_TASK}/result_stream"): _READ_SESSION_STREAM,
    ("POST", f"{_SESSION_TASK}/send_event"): _WRITE_SESSION_TASK,
    ("GET", f"{_SESSION}/state"): _READ_STATE,
    ("POST", f"{_SESSION}/state"): _WRITE_STATE,
    ("PUT", f"{_SESSION}/state"): _WRITE_STATE,
    ("GET", f"{_SESSION}/history"): _READ_SESSION,
    ("POST", f"{_SESSION}/fork"): _naming(_WRITE, fork__task_id=IdKind.TASK, fork__session_id=IdKind.SESSION),
    ("GET", f"{_SESSION}/workflow_state"): _READ,
    # -- tasks
    ("GET", "/tasks"): _naming(
        _READ, query__session=IdKind.SESSION, query__parent=IdKind.TASK, query__q=IdKind.PREFIX
    ),
    ("POST", "/tasks"): _naming(
        _WRITE,
        submission__task_id=IdKind.TASK,
        submission__session_id=IdKind.SESSION,
        submission__parent_task_id=IdKind.TASK,
    ),
    ("GET", "/tasks/count"): _READ,
    ("POST", "/tasks/bulk"): _naming(
        _WRITE,
        request__filter__session=IdKind.SESSION,
        request__filter__parent=IdKind.TASK,
        request__filter__q=IdKind.PREFIX,
    ),
    ("POST", "/tasks/import"): _naming(_WRITE, task_id=IdKind.TASK),
    ("GET", "/tasks/{task_id}"): _READ_TASK,
    ("GET", "/tasks/{task_id}/steps"): _READ_TASK,
    ("GET", "/tasks/{task_id}/questions"): _with_tokens(_QUESTIONS, ResourceKind.TASK),
    ("GET", "/tasks/{task_id}/events"): _READ_STREAM,
    ("POST", "/tasks/{task_id}/events"): _WRITE_TASK,
    ("POST", "/tasks/{task_id}/cancel"): _WRITE_TASK,
    ("POST", "/tasks/{task_id}/move"): _WRITE,
    ("POST", "/tasks/{task_id}/retry"): _naming(_WRITE, retry__task_id=IdKind.TASK),
    ("GET", "/tasks/{task_id}/export"): _READ,
    ("GET", "/events"): _naming(_READ, session=IdKind.SESSION),
    # -- questions; the token in the path of a callback is the right to answer
    ("GET", "/inbox"): _QUESTIONS,
    ("GET", "/inbox/{question_id}"): _READ_QUESTION,
    ("POST", "/inbox/{question_id}/answer"): _ANSWER_QUESTION,
    ("POST", "/inbox/{question_id}/refuse"): _ANSWER_QUESTION,
    ("POST", "/inbox/{question_id}/assign"): _ANSWER,
    ("POST", "/inbox/{question_id}/callback"): _ANSWER,
    ("POST", "/callbacks/{token}"): _OPEN,
    # -- keys, and the audit log
    ("GET", "/keys"): _KEYS,
    ("POST", "/keys"): _KEYS,
    ("POST", "/keys/{key_id}/revoke"): _KEYS,
    ("GET", "/audit"): _KEYS,
    ("POST", "/tokens"): Requirement(Tenancy.OWN),
    # -- monitoring, and the store
    ("GET", METRICS_PATH): _METRICS,
    ("GET", "/storage"): _METRICS,
    ("POST", "/storage/purge"): _PURGE,
}

QUEUE_ACCESS: Final[AccessTable] = {
    **_HEALTH,
    ("GET", "/"): _ANY_KEY,
    ("GET", "/topics"): _METRICS,
    ("POST", "/topics/{topic}"): _HOST,
    ("POST", "/messages/{topic}"): _HOST,
    ("GET", "/messages/{topic}"): _HOST,
    ("POST", "/deliveries/settle"): _HOST,
    ("DELETE", "/subscriptions/{subscription}"): _HOST,
}

SERVICE_ACCESS: Final[AccessTable] = {
    **_HEALTH,
    ("GET", "/"): _ANY_KEY,
    ("GET", METRICS_PATH): _METRICS,
    ("POST", "/process_message"): _HOST,
}
