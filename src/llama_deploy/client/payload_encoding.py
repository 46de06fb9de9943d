"""How run arguments, events and results become JSON, and JSON becomes results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic
import pydantic_core
from pydantic import BaseModel, TypeAdapter

from llama_deploy.errors import InvalidRequestError, SerializationError
from llama_deploy.types import EventDefinition, generate_id
from llama_deploy.types.validation import describe_validation_error

T = TypeVar("T")


def encode_arguments(arguments: Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run arguments as JSON values; models, dates and the like become plain JSON.

    Raises:
        InvalidRequestError: The same argument in `arguments` and as a keyword.
        SerializationError: A value cannot be carried as JSON.
    """
    given = dict(arguments or {})
    if twice := given.keys() & keywords.keys():
        raise InvalidRequestError(f"given in `arguments` and as keywords too: {', '.join(sorted(twice))}")
    return encode_json_object({**given, **keywords})


def encode_json_object(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping such as a session's state as JSON values.

    Raises:
        SerializationError: A value cannot be carried as JSON.
    """
    return {name: _to_json_value(value, path=f"$.{name}") for name, value in values.items()}


def _to_json_value(value: Any, *, path: str) -> Any:
    try:
        return pydantic_core.to_jsonable_python(value)
    except (pydantic_core.PydanticSerializationError, ValueError) as exc:
        raise SerializationError(f"{path} cannot be carried as JSON: {exc}", path=path) from exc


def encode_event(
    event: BaseModel, *, service_name: str | None = None, idempotency_key: str | None = None
) -> EventDefinition:
    """Return a workflow event as it is sent to a running task.

    The form is the one of `workflows.context.serializers.JsonSerializer`: fields with the class's name.

    Args:
        event: An event; its class must be known to the workflow.
        service_name: The service that the task must belong to. None: not checked.
        idempotency_key: Names the event within its task. None: a fresh one, so that it counts once however
            often it is sent.

    Raises:
        InvalidRequestError: No event can have this idempotency key.
        SerializationError: It is no event, or a field cannot be carried as JSON.
    """
    if not isinstance(event, BaseModel):
        raise SerializationError(
            f"an event of the workflow is expected, not {type(event).__name__}: {event!r:.80}"
        )
    name = f"{type(event).__module__}.{type(event).__name__}"
    try:
        value = event.model_dump(mode="json")
    except (pydantic_core.PydanticSerializationError, ValueError) as exc:
        raise SerializationError(f"event {name} cannot be carried as JSON: {exc}") from exc
    wire = {"__is_pydantic": True, "value": value, "qualified_name": name}
    try:
        return EventDefinition(
            agent_id=service_name,
            event_obj_str=pydantic_core.to_json(wire).decode(),
            idempotency_key=generate_id() if idempotency_key is None else idempotency_key,
        )
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"no event can have {describe_validation_error(exc)}") from exc


def decode_result(value: Any, as_type: type[T], *, task_id: str) -> T:
    """Return a result's JSON as `as_type`, any type that pydantic can validate.

    Raises:
        SerializationError: The result is not of that type.
    """
    try:
        return TypeAdapter(as_type).validate_json(pydantic_core.to_json(value))
    except pydantic.ValidationError as exc:
        name = getattr(as_type, "__name__", as_type)
        raise SerializationError(
            f"the result of task {task_id} is not a {name}: {exc}; without `as_type` it is returned as JSON"
        ) from exc
