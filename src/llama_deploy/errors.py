"""All errors of llama_deploy, in one tree.

```
LlamaDeployError
├── ConfigError (ValueError)             a setting is not valid
│   └── BindError                        a server cannot listen on its address
├── InvalidRequestError (ValueError)     a request or message is not valid
│   ├── MessageDecodeError               the bytes are not a QueueMessage of a supported version
│   ├── PayloadTooLargeError             the request body exceeds the limit
│   ├── InvalidCursorError               a cursor is malformed, or belongs to another list
│   ├── AnswerNotAcceptedError           an answer does not fit its question
│   ├── ExportFormatError                an exported task has the format of a newer release
│   ├── InvalidHostError                 an HTTP request has no single valid Host header
│   └── UnsupportedMediaTypeError        a request body is not declared as JSON
├── AuthenticationError                  a request has no valid key
├── PermissionDeniedError                the key of a request does not have the scope that it needs
├── ClientCertificateError               the server requires a client certificate
├── UntrustedHostError                   an HTTP request names a host that the server does not serve
├── ForeignOriginError                   a web page of an origin that is not allowed made the request
├── SerializationError (TypeError)       a value cannot be converted to JSON
├── SignatureError                       stored data has no valid signature
├── NotFoundError (LookupError)
│   ├── ServiceNotFoundError
│   ├── SessionNotFoundError
│   ├── TaskNotFoundError
│   │   └── TaskRemovedError             the task was removed after its retention time
│   ├── StepNotFoundError                the task has no ended step with this id
│   ├── EventsExpiredError               the events after this cursor were removed
│   ├── QuestionNotFoundError
│   ├── CallbackNotFoundError
│   ├── ApiKeyNotFoundError
│   ├── CursorExpiredError               the cursor of a feed is too old
│   ├── TopicNotFoundError
│   └── VersionNotFoundError             no living instance has this version
├── ConflictError                        the request conflicts with the current state
│   ├── TaskFinishedError                the task has ended
│   ├── QuestionClosedError              the question is answered, refused or over
│   ├── RetryRefusedError                the task cannot be retried in this way
│   ├── SessionBusyError                 the session has open tasks
│   ├── StateNotKeptError                an earlier state of the session is not stored
│   ├── StateConflictError               another writer changed the session state first
│   ├── FencedOutError                   the writer does not own the task's current attempt
│   ├── JournalConflictError             the write does not follow the run's journal
│   └── EventsMissingError *             earlier events of the attempt have not arrived yet
├── WrongServerError                     the URL is that of another server
├── OverloadedError *                    a bounded buffer is full
│   └── QueueFullError *                 a topic of the message queue is full
├── UnavailableError (ConnectionError) * the other side does not respond
│   ├── ClosedError                      the object is closed in this process
│   └── ServerBusyError *                the server has no room for the request at the moment
├── InternalServerError *                the other side failed
├── StoreLockedError                     another process uses the state store
├── ProtocolVersionError                 instance and control plane are of incompatible releases
├── RunMismatchError                     another version of the workflow started the run
├── MissingStateError (ValueError)       `ctx.store` had a value that cannot be stored between tasks
├── RunStuckError                        nothing more could happen in the run
├── BlockingCallError (RuntimeError)     a blocking client was used in a thread with an event loop
├── AttemptsExhaustedError               the task has ended too many processes
├── QuestionRefusedError                 somebody refused to answer a question of the task
├── QuestionExpiredError                 nobody answered a question of the task in time
├── TaskTimeoutError (TimeoutError)      the client stopped waiting; the task is still running
└── TaskEndedError                       the task did not succeed
    ├── TaskFailedError                  it failed or exceeded its time limit
    └── TaskCancelledError               it was cancelled
```

`*` marks errors that are `retriable`. In parentheses is the built-in class that the error also belongs to.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, ClassVar, Final, Self

_MAX_NAMES: Final = 20
"""How many names an error lists."""


class LlamaDeployError(Exception):
    """The base class of all errors of this package."""

    code: ClassVar[str] = "internal_error"
    """A stable machine-readable name: the last part of `type` in an HTTP problem document."""
    retriable: ClassVar[bool] = False
    """Whether the same call may succeed later, without a change."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    def facts(self) -> dict[str, Any]:
        """Return the error's attributes as JSON values.

        `type(error)(str(error), **error.facts())` builds an equal error.
        """
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class ConfigError(LlamaDeployError, ValueError):
    """A setting is not valid. The message names it and says what to change."""

    code = "config_error"


class BindError(ConfigError):
    """A server cannot listen on its address, for example because another process uses the port."""

    code = "bind_error"

    def __init__(self, message: str, *, host: str | None = None, port: int | None = None) -> None:
        super().__init__(message)
        self.host = host
        """The address."""
        self.port = port
        """The port; 0 if the system was to select one."""


class InvalidRequestError(LlamaDeployError, ValueError):
    """A request or message is not valid."""

    code = "invalid_request"


class MessageDecodeError(InvalidRequestError):
    """The bytes are not a `QueueMessage` of a version that this release supports."""

    code = "message_decode_error"


class PayloadTooLargeError(InvalidRequestError):
    """A request body exceeds the configured limit."""

    code = "payload_too_large"

    def __init__(self, message: str, *, limit_bytes: int | None = None) -> None:
        super().__init__(message)
        self.limit_bytes = limit_bytes
        """The limit."""


class InvalidCursorError(InvalidRequestError):
    """The cursor of a page is malformed, or belongs to a list with another filter or order."""

    code = "invalid_cursor"


class AnswerNotAcceptedError(InvalidRequestError):
    """An answer does not fit the class that its question expects."""

    code = "answer_not_accepted"

    def __init__(self, message: str, *, question_id: str | None = None) -> None:
        super().__init__(message)
        self.question_id = question_id


class ExportFormatError(InvalidRequestError):
    """An exported task has a format that this release cannot read."""

    code = "export_format"


class InvalidHostError(InvalidRequestError):
    """An HTTP request has no `Host` header, several of them, or a malformed one."""

    code = "invalid_host"


class UnsupportedMediaTypeError(InvalidRequestError):
    """An HTTP request has a body that is not declared as JSON."""

    code = "unsupported_media_type"


class AuthenticationError(LlamaDeployError):
    """A request has no key, or one that is not valid. The message does not say why it is not."""

    code = "unauthenticated"


class PermissionDeniedError(LlamaDeployError):
    """The key of a request is valid, and does not have the scope that the request needs."""

    code = "permission_denied"

    def __init__(self, message: str, *, scope: str | None = None) -> None:
        super().__init__(message)
        self.scope = scope
        """The scope, or several of which one is enough, separated by ` or `."""


class ClientCertificateError(LlamaDeployError):
    """The server requires a client certificate, and the connection of a request has none."""

    code = "client_certificate_required"


class UntrustedHostError(LlamaDeployError):
    """An HTTP request is for a host that the server is not configured to serve."""

    code = "untrusted_host"

    def __init__(self, message: str, *, host: str | None = None) -> None:
        super().__init__(message)
        self.host = host


class ForeignOriginError(LlamaDeployError):
    """A web page of another origin, which is not allowed, made an HTTP request."""

    code = "foreign_origin"

    def __init__(self, message: str, *, origin: str | None = None) -> None:
        super().__init__(message)
        self.origin = origin
        """The `Origin` header; None if the browser sent none."""


class SerializationError(LlamaDeployError, TypeError):
    """A value cannot be converted to JSON, or a result does not match the requested type."""

    code = "serialization_error"

    def __init__(self, message: str, *, path: str = "$", holds: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        """The location within the value, such as `$.items[3]`."""
        self.holds = holds
        """The class of the value there, without its module, if no value of the class can be converted."""


class SignatureError(LlamaDeployError):
    """Stored data has no valid signature of a configured key for its location."""

    code = "signature_error"

    def __init__(self, message: str, *, context: str | None = None) -> None:
        super().__init__(message)
        self.context = context
        """The location that the signature must cover, such as a session's id."""


class NotFoundError(LlamaDeployError, LookupError):
    """The requested object does not exist."""

    code = "not_found"


class ServiceNotFoundError(NotFoundError):
    """The service is not registered."""

    code = "service_not_found"

    def __init__(self, message: str, *, service_name: str | None = None) -> None:
        super().__init__(message)
        self.service_name = service_name

    @classmethod
    def among(cls, known: Collection[str], service_name: str) -> Self:
        """Return the error for a name that is not among the known ones; the text lists these."""
        names = sorted(known)
        listed = ", ".join(names[:_MAX_NAMES])
        if len(names) > _MAX_NAMES:
            listed += f" and {len(names) - _MAX_NAMES} more"
        if near := get_close_matches(service_name, names, n=1):
            others = f"did you mean {near[0]!r}? Registered services: {listed}"
        else:
            others = f"registered services: {listed}" if names else "no service is registered yet"
        return cls(f"there is no service {service_name!r}; {others}", service_name=service_name)


class SessionNotFoundError(NotFoundError):
    """The session does not exist."""

    code = "session_not_found"

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class TaskNotFoundError(NotFoundError):
    """The task does not exist, or belongs to another session."""

    code = "task_not_found"

    def __init__(self, message: str, *, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class TaskRemovedError(TaskNotFoundError):
    """The task has ended and was removed after its retention time. It will not run again under this id."""

    code = "task_removed"

    def __init__(self, message: str, *, task_id: str | None = None, removed_at: str | None = None) -> None:
        super().__init__(message, task_id=task_id)
        self.removed_at = removed_at
        """When, in ISO 8601."""


class StepNotFoundError(NotFoundError):
    """No step of the task that has ended has this id."""

    code = "step_not_found"

    def __init__(self, message: str, *, task_id: str | None = None, step_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.step_id = step_id


class EventsExpiredError(NotFoundError):
    """Events after this cursor were removed after their retention time. The terminal event is still there."""

    code = "events_expired"

    def __init__(
        self,
        message: str,
        *,
        task_id: str | None = None,
        after: int | None = None,
        next_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.after = after
        """The cursor."""
        self.next_after = next_after
        """The smallest cursor after which no event is missing."""


class QuestionNotFoundError(NotFoundError):
    """The question does not exist, or was deleted with its session."""

    code = "question_not_found"

    def __init__(self, message: str, *, question_id: str | None = None) -> None:
        super().__init__(message)
        self.question_id = question_id


class CallbackNotFoundError(NotFoundError):
    """There is no callback with this token."""

    code = "callback_not_found"


class ApiKeyNotFoundError(NotFoundError):
    """There is no API key with this id."""

    code = "api_key_not_found"


class CursorExpiredError(NotFoundError):
    """The cursor of a feed is too old to resume from."""

    code = "cursor_expired"


class TopicNotFoundError(NotFoundError):
    """The message queue has no such topic."""

    code = "topic_not_found"

    def __init__(self, message: str, *, topic: str | None = None) -> None:
        super().__init__(message)
        self.topic = topic


class VersionNotFoundError(NotFoundError):
    """No living instance of the service has this version."""

    code = "version_not_found"

    def __init__(self, message: str, *, version: str | None = None) -> None:
        super().__init__(message)
        self.version = version


class ConflictError(LlamaDeployError):
    """The request is valid but conflicts with the current state."""

    code = "conflict"


class TaskFinishedError(ConflictError):
    """The task has ended: it accepts no events and no other result."""

    code = "task_finished"

    def __init__(self, message: str, *, task_id: str | None = None, status: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.status = status
        """The terminal status of the task."""


class QuestionClosedError(ConflictError):
    """The question cannot be answered any more."""

    code = "question_closed"

    def __init__(self, message: str, *, question_id: str | None = None, state: str | None = None) -> None:
        super().__init__(message)
        self.question_id = question_id
        self.state = state
        """What has become of it, see `QuestionState`."""


class RetryRefusedError(ConflictError):
    """A task cannot be retried in the way that was asked for. The message says why, and what can be done."""

    code = "retry_refused"

    def __init__(self, message: str, *, task_id: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.reason = reason
        """`open` (it has not ended), `succeeded`, `volatile`, `durability` or `route` (nothing of such a run
        is kept), `journal` (it was not kept), `version` (no living version fits), `step` (what is kept does
        not reach back to this step), `retried` (it was retried before) or `id` (another task has the id)."""


class SessionBusyError(ConflictError):
    """The session has open tasks: its policy is `reject`, or it was to be deleted without `cancel`."""

    code = "session_busy"

    def __init__(self, message: str, *, session_id: str | None = None, open_tasks: int | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.open_tasks = open_tasks
        """How many tasks have not ended. None: not counted."""


class StateNotKeptError(ConflictError):
    """An earlier state of a session was asked for that is not stored any more, or never was."""

    code = "state_not_kept"


class StateConflictError(ConflictError):
    """Another writer changed the session state first. Read it again and retry the change."""

    code = "state_conflict"

    def __init__(self, message: str, *, expected: int | None = None, actual: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        """The version that the writer had read."""
        self.actual = actual
        """The current version."""


class FencedOutError(ConflictError):
    """The writer does not own the task's current attempt. It must stop working on the task."""

    code = "fenced_out"

    def __init__(self, message: str, *, task_id: str | None = None, attempt: int | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.attempt = attempt


class JournalConflictError(ConflictError):
    """A write does not follow the last entry of the run's journal.

    Entries that the writer assumes to be stored are missing. Only a new attempt, which reads the journal, can
    continue the run.
    """

    code = "journal_conflict"

    def __init__(self, message: str, *, task_id: str | None = None, expected: int | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.expected = expected
        """The number of entries in the journal."""


class EventsMissingError(ConflictError):
    """Events arrived before earlier ones of the same attempt. Send them again later."""

    code = "events_missing"
    retriable = True

    def __init__(self, message: str = "", *, task_id: str | None = None, expected: int | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.expected = expected
        """The number of the first missing event."""


class WrongServerError(LlamaDeployError):
    """The URL is that of another server, such as the message queue instead of the control plane."""

    code = "wrong_server"


class OverloadedError(LlamaDeployError):
    """A bounded buffer is full."""

    code = "overloaded"
    retriable = True

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait before the next attempt."""


class QueueFullError(OverloadedError):
    """A topic of the message queue has reached its limit."""

    code = "queue_full"

    def __init__(self, message: str, *, topic: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after=retry_after)
        self.topic = topic


class UnavailableError(LlamaDeployError, ConnectionError):
    """The other side does not respond, or the connection broke."""

    code = "unavailable"
    retriable = True


class ClosedError(UnavailableError):
    """The object was closed in this process. Create a new one.

    It has the `code` of `UnavailableError`: for a client, a server that closes may come back.
    """

    retriable = False


class ServerBusyError(UnavailableError):
    """The server has no room for the request at the moment. Send it again later."""

    code = "server_busy"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait before the next attempt."""


class InternalServerError(LlamaDeployError):
    """The other side failed, without an error that this release knows."""

    code = "internal_error"
    retriable = True


class StoreLockedError(LlamaDeployError):
    """Another control plane uses this state store, and the store supports only one."""

    code = "store_locked"

    def __init__(self, message: str, *, path: str | None = None, pid: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        """The file of the store."""
        self.pid = pid
        """The process that uses the store. None: not known."""


class ProtocolVersionError(LlamaDeployError):
    """An instance and a control plane speak different major versions of their protocol."""

    code = "protocol_version"

    def __init__(
        self, message: str = "", *, version: int | str | None = None, supported: int | None = None
    ) -> None:
        super().__init__(message)
        self.version = version
        """The version of the other side."""
        self.supported = supported
        """The version of the side that refuses."""


class RunMismatchError(LlamaDeployError):
    """A run cannot continue here: another version of its workflow or of the library started it."""

    code = "run_mismatch"

    def __init__(self, message: str = "", *, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class MissingStateError(LlamaDeployError, ValueError):
    """A step reads a key of `ctx.store` whose value an earlier task of the session could not store.

    A `ValueError`, as the library raises for a key that does not exist.
    """

    code = "missing_state"


class RunStuckError(LlamaDeployError):
    """The failure of a run without a time limit in which no step was running and nothing was waited for."""

    code = "run_stuck"


class BlockingCallError(LlamaDeployError, RuntimeError):
    """A call of a client without `await` that would block the event loop of its thread."""

    code = "blocking_call"


class AttemptsExhaustedError(LlamaDeployError):
    """The failure of a task that was charged with the deaths of `max_attempts` processes."""

    code = "attempts_exhausted"


class QuestionRefusedError(LlamaDeployError):
    """The failure of a task whose question somebody has refused to answer."""

    code = "question_refused"


class QuestionExpiredError(LlamaDeployError):
    """The failure of a task whose question had no answer at its deadline, and no default."""

    code = "question_expired"


class TaskTimeoutError(LlamaDeployError, TimeoutError):
    """The client stopped waiting for the result. The task is still running; you can wait again."""

    code = "task_timeout"

    def __init__(self, message: str, *, task_id: str | None = None, timeout: float | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.timeout = timeout
        """The seconds that the client waited."""


class TaskEndedError(LlamaDeployError):
    """A task did not succeed.

    Attributes:
        task_id: The task.
        status: Its terminal status: `failed`, `timed_out` or `cancelled`.
        error_type: Qualified name of the exception in the service, such as `builtins.ValueError`, or None.
        error_message: The message of that exception, or None.
        traceback: The last lines of its traceback, or None.
    """

    code = "task_ended"

    def __init__(
        self,
        message: str,
        *,
        task_id: str | None = None,
        status: str | None = None,
        error_type: str | None = None,
        error_message: str | None = None,
        traceback: str | None = None,
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.status = status
        self.error_type = error_type
        self.error_message = error_message
        self.traceback = traceback


class TaskFailedError(TaskEndedError):
    """The task failed or exceeded its time limit."""

    code = "task_failed"


class TaskCancelledError(TaskEndedError):
    """The task was cancelled."""

    code = "task_cancelled"
