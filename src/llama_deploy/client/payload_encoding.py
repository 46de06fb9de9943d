"""Run arguments, events, requests and results: from Python values to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import pydantic
import pydantic_core
from pydantic import BaseModel, TypeAdapter

from llama_deploy.errors import InvalidRequestError, SerializationError
from llama_deploy.portability.json_parts import of_numpy
from llama_deploy.portability.live_objects import check_portable
from llama_deploy.portability.nodes import with_field_names, with_nodes
from llama_deploy.portability.plain_checks import check_plain
from llama_deploy.running_task import TaskInfo
from llama_deploy.types import (
    EventDefinition,
    SessionFork,
    SessionOptions,
    SessionPolicy,
    TaskSubmission,
    generate_id,
)
from llama_deploy.types.questions import Answer
from llama_deploy.types.validation import describe_validation_error

T = TypeVar("T")
_ONLY_DATA: Final = (
    "only data can be sent: plain values, lists, dicts, models and dataclasses. Make a list of what is only "
    "iterated over, and create anything else where the workflow runs"
)

_ENCODING_ERRORS: Final = (pydantic_core.PydanticSerializationError, ValueError, TypeError, RecursionError)


def encode_arguments(arguments: Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run arguments as JSON values; models, dates and similar values become plain JSON.

    Raises:
        InvalidRequestError: An argument is in `arguments` and also a keyword.
        SerializationError: A value cannot be converted to JSON, or must not leave the process, such as an LLM
            with its key; see `live_objects`.
    """
    given = dict(arguments or {})
    if twice := given.keys() & keywords.keys():
        raise InvalidRequestError(
            f"these run arguments are both in `arguments` and keywords: {', '.join(sorted(twice))}; "
            "pass each of them once"
        )
    return encode_json_object({**given, **keywords})


def encode_json_object(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping such as a session's state as JSON values.

    Raises:
        SerializationError: A value cannot be converted to JSON, or must not leave the process.
    """
    return {name: _to_json_value(value, path=f"$.{name}") for name, value in values.items()}


def _to_json_value(value: Any, *, path: str) -> Any:
    try:
        has_names = check_plain(value)
        encoded = pydantic_core.to_jsonable_python(value, fallback=_otherwise)
        return with_field_names(value, encoded) if has_names else encoded
    except _ENCODING_ERRORS as exc:
        check_portable(value, path=path)
        raise SerializationError(
            f"{path} cannot be converted to JSON: {exc}; {_ONLY_DATA}", path=path
        ) from exc


def _otherwise(value: Any) -> Any:
    """Return what stands in JSON for an object that pydantic does not know."""
    plain = of_numpy(value)
    check_plain(plain)
    return plain


def encode_event(
    event: BaseModel, *, service_name: str | None = None, idempotency_key: str | None = None
) -> EventDefinition:
    """Return a workflow event in the format of `workflows.context.serializers.JsonSerializer`.

    Args:
        event: An event whose class the workflow accepts.
        service_name: The service that the task must belong to. None: not checked.
        idempotency_key: Identifies the event within its task. None: a new key, so that the event counts
            once even if it is sent several times.

    Raises:
        InvalidRequestError: The idempotency key is empty or too long.
        SerializationError: `event` is not an event, a field cannot be converted to JSON, or its value must
            not leave the process.
    """
    if not isinstance(event, BaseModel):
        raise SerializationError(f"expected an event of the workflow, got a {type(event).__name__}")
    name = f"{type(event).__module__}.{type(event).__name__}"
    try:
        has_names = check_plain(event)
        serializer = type(event).__pydantic_serializer__
        # A warning would show the value of a field.
        value = serializer.to_python(event, mode="json", warnings=False, fallback=_otherwise)
        if has_names:
            value = with_field_names(event, value)
    except _ENCODING_ERRORS as exc:
        check_portable(event, path=type(event).__name__)
        raise SerializationError(f"event {name} cannot be converted to JSON: {exc}; {_ONLY_DATA}") from exc
    wire = {"__is_pydantic": True, "value": value, "qualified_name": name}
    try:
        return EventDefinition(
            agent_id=service_name,
            event_obj_str=pydantic_core.to_json(wire).decode(),
            idempotency_key=generate_id() if idempotency_key is None else idempotency_key,
        )
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the event is not valid: {describe_validation_error(exc)}") from exc


def encode_answer(
    event: BaseModel | Mapping[str, Any],
    *,
    event_type: str | None = None,
    idempotency_key: str | None = None,
) -> Answer:
    """Return the answer to a question.

    Args:
        event: An event, or its fields.
        event_type: Its class. None: that of the event, or the expected one.
        idempotency_key: Identifies the answer. None: a new key.

    Raises:
        InvalidRequestError: The idempotency key is empty or too long.
        SerializationError: A field cannot be converted to JSON.
    """
    if isinstance(event, BaseModel):
        name, fields = encode_event(event).content()
    else:
        name, fields = None, encode_json_object(event)
    try:
        return Answer(
            event=fields,
            type=event_type or name,
            idempotency_key=generate_id() if idempotency_key is None else idempotency_key,
        )
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the answer is not valid: {describe_validation_error(exc)}") from exc


def decode_result(value: Any, as_type: type[T], *, task_id: str) -> T:
    """Return a result's JSON as `as_type`, which is any type that pydantic can validate.

    Raises:
        SerializationError: The result does not match `as_type`.
    """
    adapter = TypeAdapter(as_type)
    try:
        try:
            return adapter.validate_json(pydantic_core.to_json(value))
        except TypeError:  # an abstract class
            return adapter.validate_python(with_nodes(value))
    except pydantic.ValidationError as exc:
        name = getattr(as_type, "__name__", as_type)
        raise SerializationError(
            f"the result of task {task_id} does not match {name}: {describe_validation_error(exc)}; "
            "leave out `as_type` to get it as JSON"
        ) from exc


def build_submission(
    service_name: str,
    arguments: Mapping[str, Any],
    *,
    session_id: str | None = None,
    task_id: str | None = None,
    max_attempts: int | None = None,
    session_policy: SessionPolicy | str | None = None,
    tags: Sequence[str] = (),
    parent: TaskInfo | None = None,
) -> TaskSubmission:
    """Return the request to accept a task; `arguments` are JSON values. A step's task becomes its parent.

    Raises:
        InvalidRequestError: A name, id or number is out of range, or the policy is unknown.
    """
    chosen: dict[str, Any] = {} if task_id is None else {"task_id": task_id}
    if tags:
        # A text is a sequence of texts too, and seldom meant as one.
        chosen["tags"] = tags if isinstance(tags, str) else list(tags)
    if parent is not None:
        chosen["parent_task_id"] = parent.task_id
    try:
        return TaskSubmission(
            service_name=service_name,
            arguments=dict(arguments),
            session_id=session_id,
            max_attempts=max_attempts,
            session_policy=None if session_policy is None else _policy(session_policy),
            **chosen,
        )
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the task is not valid: {describe_validation_error(exc)}") from exc


def build_session_fork(
    *,
    task_id: str | None,
    session_id: str,
    policy: SessionPolicy | str | None,
    tags: Sequence[str] | None,
) -> SessionFork:
    """Return the request to fork a session.

    Raises:
        InvalidRequestError: An id or a tag cannot be one, or the policy is unknown.
    """
    try:
        return SessionFork(
            task_id=task_id,
            session_id=session_id,
            policy=None if policy is None else _policy(policy),
            tags=None if tags is None else _tags(tags),
        )
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the fork is not valid: {describe_validation_error(exc)}") from exc


def build_session_options(
    session_id: str, policy: SessionPolicy | str, tags: Sequence[str] = ()
) -> SessionOptions:
    """Return the request to create a session.

    Raises:
        InvalidRequestError: The id or a tag is empty or too long, or the policy is unknown.
    """
    try:
        return SessionOptions(session_id=session_id, policy=_policy(policy), tags=_tags(tags))
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the session is not valid: {describe_validation_error(exc)}") from exc


def _tags(tags: Sequence[str]) -> list[str]:
    if isinstance(tags, str):
        raise InvalidRequestError(f"tags must be a list of texts, not the text {tags!r}; pass [{tags!r}]")
    return list(tags)


def _policy(policy: SessionPolicy | str) -> SessionPolicy:
    try:
        return SessionPolicy(policy)
    except ValueError as exc:
        known = ", ".join(SessionPolicy)
        raise InvalidRequestError(f"unknown session policy {policy!r}; use one of: {known}") from exc
