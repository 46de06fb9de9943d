"""Every error that llama_deploy raises, in one tree with one root.

```
LlamaDeployError
├── ConfigError (ValueError)             a setting that cannot work
├── InvalidRequestError (ValueError)     what was sent is not what is understood
│   ├── MessageDecodeError               bytes that are not a QueueMessage of a known version
│   └── PayloadTooLargeError             a body above the limit
├── SerializationError (TypeError)       a value that cannot be carried as JSON
├── SignatureError                       stored data that no holder of a key has signed
├── NotFoundError (LookupError)
│   ├── ServiceNotFoundError
│   ├── SessionNotFoundError
│   ├── TaskNotFoundError
│   └── TopicNotFoundError
├── ConflictError                        the request does not fit the present state
│   ├── TaskFinishedError                the task has ended; it takes no events and no second end
│   ├── SessionBusyError                 the session's policy is to reject a second task
│   ├── StateConflictError               compare-and-set: somebody else wrote first
│   ├── FencedOutError                   an older attempt, or a stranger, writes for a task
│   ├── JournalConflictError             a write does not follow what the run's journal holds
│   └── EventsMissingError               earlier events of the attempt have not arrived; retriable
├── OverloadedError                      a bounded buffer is full; retriable
│   └── QueueFullError
├── UnavailableError (ConnectionError)   the other side does not answer; retriable
│   └── ClosedError                      what was called is closed in this process; not retriable
├── InternalServerError                  the other side answered with a fault of its own; retriable
├── StoreLockedError                     another control plane holds the state store
├── ProtocolVersionError                 an instance and a control plane of releases that do not fit
├── RunMismatchError                     another version of a workflow has begun the run
├── AttemptsExhaustedError               instances died under a task as often as it allows
├── TaskTimeoutError (TimeoutError)      the client stopped waiting; the task goes on
└── TaskEndedError                       the task ended otherwise than by success
    ├── TaskFailedError                  failed or timed out
    └── TaskCancelledError
```
"""

from __future__ import annotations

from typing import Any, ClassVar


class LlamaDeployError(Exception):
    """The root of all errors of this package."""

    code: ClassVar[str] = "internal_error"
    """Stable machine-readable name; the last part of a problem's `type` over HTTP."""
    retriable: ClassVar[bool] = False
    """Whether the same call may succeed later without a change."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    def facts(self) -> dict[str, Any]:
        """Return the error's attributes as JSON values, to travel beside its text.

        Passing them to the class as keyword arguments after the text builds the same error again.
        """
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class ConfigError(LlamaDeployError, ValueError):
    """A setting has a value with which nothing can work."""

    code = "config_error"


class InvalidRequestError(LlamaDeployError, ValueError):
    """A request or message is not of the form that is understood."""

    code = "invalid_request"


class MessageDecodeError(InvalidRequestError):
    """Bytes do not hold a `QueueMessage` of a version that this release reads."""

    code = "message_decode_error"


class PayloadTooLargeError(InvalidRequestError):
    """A request body exceeds the configured limit."""

    code = "payload_too_large"

    def __init__(self, message: str, *, limit_bytes: int | None = None) -> None:
        super().__init__(message)
        self.limit_bytes = limit_bytes


class SerializationError(LlamaDeployError, TypeError):
    """A value cannot be carried as JSON. `path` names the place inside the value, such as `$.items[3]`."""

    code = "serialization_error"

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class SignatureError(LlamaDeployError):
    """Stored data was not signed by a holder of a configured key, for the place where it stands."""

    code = "signature_error"

    def __init__(self, message: str, *, context: str | None = None) -> None:
        super().__init__(message)
        self.context = context
        """What the signature should have been made for, such as a session's id."""


class NotFoundError(LlamaDeployError, LookupError):
    """Something was addressed that does not exist."""

    code = "not_found"


class ServiceNotFoundError(NotFoundError):
    """No service is registered under this name."""

    code = "service_not_found"

    def __init__(self, message: str, *, service_name: str | None = None) -> None:
        super().__init__(message)
        self.service_name = service_name


class SessionNotFoundError(NotFoundError):
    """There is no session with this id."""

    code = "session_not_found"

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class TaskNotFoundError(NotFoundError):
    """There is no task with this id (in this session)."""

    code = "task_not_found"

    def __init__(self, message: str, *, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class TopicNotFoundError(NotFoundError):
    """The queue has no topic of this name."""

    code = "topic_not_found"

    def __init__(self, message: str, *, topic: str | None = None) -> None:
        super().__init__(message)
        self.topic = topic


class ConflictError(LlamaDeployError):
    """The request is well formed but does not fit the present state."""

    code = "conflict"


class TaskFinishedError(ConflictError):
    """The task has ended already."""

    code = "task_finished"

    def __init__(self, message: str, *, task_id: str | None = None, status: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.status = status


class SessionBusyError(ConflictError):
    """A session whose policy is `reject` has an open task."""

    code = "session_busy"

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class StateConflictError(ConflictError):
    """The session state has another version than the one that the writer had read."""

    code = "state_conflict"

    def __init__(self, message: str, *, expected: int | None = None, actual: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class FencedOutError(ConflictError):
    """The writer does not own the attempt that it writes for; it must stop."""

    code = "fenced_out"

    def __init__(self, message: str, *, task_id: str | None = None, attempt: int | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.attempt = attempt


class JournalConflictError(ConflictError):
    """The owner of an attempt wrote something that does not follow the entries of its run's journal.

    What the writer believes to be stored is not: only a new attempt, which reads the journal, can go on.
    """

    code = "journal_conflict"

    def __init__(self, message: str, *, task_id: str | None = None, expected: int | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.expected = expected
        """How many entries the journal has."""


class EventsMissingError(ConflictError):
    """Events arrived before earlier ones of the same attempt; sent again a little later, they fit."""

    code = "events_missing"
    retriable = True

    def __init__(self, message: str = "", *, task_id: str | None = None, expected: int | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.expected = expected
        """The number of the first event that is missing."""


class OverloadedError(LlamaDeployError):
    """A bounded buffer is full. `retry_after` is in seconds."""

    code = "overloaded"
    retriable = True

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(OverloadedError):
    """A topic holds as many messages as it may."""

    code = "queue_full"

    def __init__(self, message: str, *, topic: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after=retry_after)
        self.topic = topic


class UnavailableError(LlamaDeployError, ConnectionError):
    """The other side cannot be reached, or broke the connection."""

    code = "unavailable"
    retriable = True


class ClosedError(UnavailableError):
    """What was called in this process is closed; only a new one helps.

    Its `code` is that of `UnavailableError`: to another process, a server that
    closes is one that may be back.
    """

    retriable = False


class InternalServerError(LlamaDeployError):
    """The other side answered that it failed, without an error that this release knows."""

    code = "internal_error"
    retriable = True


class StoreLockedError(LlamaDeployError):
    """Another control plane works on the same state store."""

    code = "store_locked"

    def __init__(self, message: str, *, path: str | None = None, pid: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid
        """The process that holds the store, if it is known."""


class ProtocolVersionError(LlamaDeployError):
    """An instance and a control plane speak different major versions of their protocol."""

    code = "protocol_version"

    def __init__(
        self, message: str = "", *, version: int | str | None = None, supported: int | None = None
    ) -> None:
        super().__init__(message)
        self.version = version
        """What the other side speaks."""
        self.supported = supported
        """What the side that refuses speaks."""


class RunMismatchError(LlamaDeployError):
    """A run cannot go on here: another version of its workflow, or of the library, has begun it."""

    code = "run_mismatch"

    def __init__(self, message: str = "", *, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class AttemptsExhaustedError(LlamaDeployError):
    """Instances died under a task as often as it allows: how such a task fails."""

    code = "attempts_exhausted"


class TaskTimeoutError(LlamaDeployError, TimeoutError):
    """The client waited `timeout` seconds for the result. The task itself goes on."""

    code = "task_timeout"

    def __init__(self, message: str, *, task_id: str | None = None, timeout: float | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.timeout = timeout


class TaskEndedError(LlamaDeployError):
    """A task ended otherwise than by success.

    Attributes:
        task_id: The task.
        status: Its terminal status: `failed`, `timed_out` or `cancelled`.
        error_type: Qualified name of the exception in the service, such as `builtins.ValueError`.
        error_message: The text of that exception.
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
    """The task failed or exceeded its own time limit."""

    code = "task_failed"


class TaskCancelledError(TaskEndedError):
    """The task was cancelled."""

    code = "task_cancelled"
