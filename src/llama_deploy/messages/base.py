"""`QueueMessage`, the envelope of every message on a queue, and its versioned codec.

On the wire a message is a JSON object with a major version, `"v": 1`. Without one it is read as version 1,
the form of 0.6. A reader ignores fields that it does not know, and passes them on when it forwards the
message. It refuses a major version that it does not know. So services, queues and control planes can be
upgraded in any order as long as the major version stays.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llama_deploy.errors import MessageDecodeError, SerializationError
from llama_deploy.types import ActionTypes, generate_id
from llama_deploy.types.json_values import is_deeper
from llama_deploy.types.validation import describe_validation_error

WIRE_VERSION: Final = 1
"""The major version that this release writes, and the only one that it reads."""
MAX_DEPTH: Final = 180
"""How deep objects and lists may be nested in a message. The JSON parser reads 201 levels, and some queues
wrap a message in further ones."""


class QueueMessageStats(BaseModel):
    """When a message was published and processed; ISO 8601, UTC.

    The times of processing are those of the receiver. A message equals the one that was sent, with them or
    without.
    """

    model_config = ConfigDict(extra="allow")

    publish_time: str | None = None
    """Set by the queue that publishes the message."""
    process_start_time: str | None = None
    process_end_time: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QueueMessageStats) and self.publish_time == other.publish_time

    __hash__ = None  # type: ignore[assignment]  # as of every model that can change

    @staticmethod
    def timestamp_str(format: str | None = None) -> str:  # noqa: A002 - 0.6 API
        """Return the current time, in the format of the fields or that of `strftime`."""
        now = datetime.now(UTC)
        return now.isoformat() if format is None else now.strftime(format)


def _describe_version(schema: dict[str, Any]) -> None:
    schema["properties"]["v"] = {"const": WIRE_VERSION, "default": WIRE_VERSION, "title": "Wire version"}


class QueueMessage(BaseModel):
    """A message on a queue.

    Fields of a newer release are kept in `model_extra`, so that forwarding the message does not lose them.
    """

    # The JSON parser on both sides reads `Infinity` and `NaN`; the default, null, would lose the number.
    # An object in the data that is not valid may show its secrets.
    model_config = ConfigDict(
        extra="allow",
        ser_json_inf_nan="constants",
        json_schema_extra=_describe_version,
        hide_input_in_errors=True,
    )

    id_: str = Field(default_factory=generate_id)
    publisher_id: str = "default"
    data: dict[str, Any] = Field(default_factory=dict)
    action: ActionTypes | None = None
    stats: QueueMessageStats = Field(default_factory=QueueMessageStats)
    type: str = "default"
    """The name of the service that it is for, or `control_plane`. A consumer rejects messages of another
    type."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Metadata beside the data, such as the W3C trace context (`traceparent`)."""

    def to_wire(self) -> dict[str, Any]:
        """Return the message as JSON values, including the version.

        Raises:
            SerializationError: The message holds something that is not JSON.
        """
        try:
            return {**self.model_dump(mode="json"), "v": WIRE_VERSION}
        except (pydantic_core.PydanticSerializationError, ValueError) as exc:
            raise SerializationError(f"message {self.id_} holds data that is not JSON: {exc}") from exc

    @classmethod
    def from_wire(cls, wire: Any) -> QueueMessage:
        """Build a message from decoded JSON.

        Raises:
            MessageDecodeError: Not an object, an unknown major version, or a field with an invalid value.
        """
        if not isinstance(wire, dict):
            raise MessageDecodeError(f"a message is a JSON object, not {type(wire).__name__}: {wire!r:.80}")
        fields = dict(wire)
        cls.check_version(fields.pop("v", WIRE_VERSION))
        try:
            return cls.model_validate(fields)
        except ValidationError as exc:
            raise MessageDecodeError(f"invalid message: {describe_validation_error(exc)}") from exc

    @staticmethod
    def check_version(version: object) -> None:
        """Raise `MessageDecodeError` if a message has a wire version that this release does not read."""
        if version != WIRE_VERSION or isinstance(version, bool):
            raise MessageDecodeError(
                f"the message has wire version {version!r} but this release reads version {WIRE_VERSION}; "
                "upgrade this process, or downgrade the sender"
            )

    def encode(self) -> bytes:
        """Return the message as JSON bytes.

        Raises:
            SerializationError: The message holds something that is not JSON, or is nested too deeply.
        """
        try:
            raw = b'{"v":%d,%b' % (WIRE_VERSION, self.model_dump_json().encode()[1:])
        except (pydantic_core.PydanticSerializationError, ValueError) as exc:
            raise SerializationError(f"message {self.id_} holds data that is not JSON: {exc}") from exc
        # A message with few brackets cannot be deep, and counting them is cheap.
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and is_deeper(self.to_wire(), MAX_DEPTH):
            raise SerializationError(
                f"message {self.id_} nests objects and lists more than {MAX_DEPTH} levels deep, which no "
                "receiver can read; nest less, or send the inner part as a string"
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
