"""`QueueMessage`, the envelope of everything that travels over a message queue, and its codec.

On the wire a message is a JSON object with a version, `"v": 1`. An object without one is read as version 1,
which is the form that 0.6 used. What this release does not know it refuses, so that a message from a newer
release is put aside whole and never half understood.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llama_deploy.errors import MessageDecodeError, SerializationError
from llama_deploy.types import generate_id
from llama_deploy.types.json_values import is_deeper
from llama_deploy.types.validation import describe_validation_error

WIRE_VERSION: Final = 1
"""The version that this release writes, and the only one that it reads."""
MAX_DEPTH: Final = 180
"""The most objects and lists inside each other in a message. pydantic's parser reads 201 levels; what carries
messages wraps them into some more."""


class ActionTypes(StrEnum):
    """What the receiver of a message is to do."""

    NEW_TASK = "new_task"
    """To a service: claim and run an attempt. Data: `TaskDispatch`."""
    COMPLETED_TASK = "completed_task"
    """To the control plane: an attempt has ended. Data: `AttemptOutcome`."""
    REQUEST_FOR_HELP = "request_for_help"
    """Kept for the 0.6 API."""
    NEW_TOOL_CALL = "new_tool_call"
    """Kept for the 0.6 API."""
    COMPLETED_TOOL_CALL = "completed_tool_call"
    """Kept for the 0.6 API."""
    TASK_STREAM = "task_stream"
    """To the control plane: events that an attempt streamed. Data: `AttemptEvents`."""
    SEND_EVENT = "send_event"
    """To an instance: an event for a running workflow. Data: `InboxEntry`."""
    CANCEL_TASK = "cancel_task"
    """To an instance: stop an attempt. Data: `TaskCancellation`."""


def _now() -> str:
    return datetime.now(UTC).isoformat()


class QueueMessageStats(BaseModel):
    """When a message was published and processed; ISO 8601, UTC."""

    model_config = ConfigDict(extra="forbid")

    publish_time: str | None = Field(default_factory=_now)
    process_start_time: str | None = None
    process_end_time: str | None = None

    @staticmethod
    def timestamp_str() -> str:
        """Return the present time in the form of the fields."""
        return _now()


def _describe_version(schema: dict[str, Any]) -> None:
    schema["properties"]["v"] = {"const": WIRE_VERSION, "default": WIRE_VERSION, "title": "Wire version"}


class QueueMessage(BaseModel):
    """A message on a queue."""

    # Infinity and NaN travel as these words, which the readers of both sides know; null would be a lie.
    model_config = ConfigDict(
        extra="forbid", ser_json_inf_nan="constants", json_schema_extra=_describe_version
    )

    id_: str = Field(default_factory=generate_id)
    publisher_id: str = "default"
    data: dict[str, Any] = Field(default_factory=dict)
    action: ActionTypes | None = None
    stats: QueueMessageStats = Field(default_factory=QueueMessageStats)
    type: str = "default"
    """The name of the service that it is for, or `control_plane`; a consumer refuses messages of another
    type."""

    def to_wire(self) -> dict[str, Any]:
        """Return the message as JSON values, version included.

        Raises:
            SerializationError: `data` holds something that is not JSON.
        """
        try:
            return {"v": WIRE_VERSION, **self.model_dump(mode="json")}
        except (pydantic_core.PydanticSerializationError, ValueError) as exc:
            raise SerializationError(f"message {self.id_} holds data that is not JSON: {exc}") from exc

    @classmethod
    def from_wire(cls, wire: Any) -> QueueMessage:
        """Build a message from decoded JSON.

        Raises:
            MessageDecodeError: Not an object, or a version, field, action or value that is not known.
        """
        if not isinstance(wire, dict):
            raise MessageDecodeError(f"a message is a JSON object, not {type(wire).__name__}: {wire!r:.80}")
        fields = dict(wire)
        version = fields.pop("v", WIRE_VERSION)
        if version != WIRE_VERSION or isinstance(version, bool):
            raise MessageDecodeError(
                f"message version {version!r} is not known; this release reads version {WIRE_VERSION}"
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as exc:
            raise MessageDecodeError(f"not a message: {describe_validation_error(exc)}") from exc

    def encode(self) -> bytes:
        """Return the message as JSON bytes.

        Raises:
            SerializationError: `data` holds something that is not JSON, or is nested too deep.
        """
        wire = self.to_wire()
        try:
            raw = pydantic_core.to_json(wire)
        except pydantic_core.PydanticSerializationError as exc:
            raise SerializationError(f"message {self.id_} cannot be written as JSON: {exc}") from exc
        # Few brackets are few levels, and to count them costs next to nothing.
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and is_deeper(wire, MAX_DEPTH):
            raise SerializationError(
                f"message {self.id_} holds objects and lists nested more than {MAX_DEPTH} deep, which no "
                "receiver could read; nest less, or send the inner part as a string"
            )
        return raw

    @classmethod
    def decode(cls, raw: bytes | str) -> QueueMessage:
        """Read a message from JSON bytes.

        Raises:
            MessageDecodeError: Not JSON, or not a message of a known version.
        """
        try:
            wire = pydantic_core.from_json(raw)
        except ValueError as exc:
            raise MessageDecodeError(f"not JSON: {exc}; the message begins with {raw[:40]!r}") from exc
        return cls.from_wire(wire)
