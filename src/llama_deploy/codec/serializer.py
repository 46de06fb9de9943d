"""The codec as the workflow library's serializer, for `Workflow(serializer=...)` and contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workflows.context import BaseSerializer, JsonSerializer
from workflows.events import Event

from llama_deploy.codec.annotations import has_fields
from llama_deploy.codec.type_registry import TypeRegistry
from llama_deploy.codec.typed_json import TypedJson


class TypedSerializer(BaseSerializer):
    """Serializes the events, state and ticks of a workflow with their types.

    Args:
        codec: Knows the workflow's classes.
    """

    def __init__(self, codec: TypedJson) -> None:
        self._codec = codec
        self._names = _Names(codec.types)

    def serialize(self, value: Any) -> str:
        """Return a value as JSON text.

        Raises:
            SerializationError: Something in it cannot be encoded. The path begins with the value's class.
        """
        cls = type(value)
        kind = "event " if issubclass(cls, Event) else ""
        return self._codec.dumps(value, path=kind + cls.__name__ if has_fields(cls) else "value")

    def deserialize(self, value: str) -> Any:
        """Return the value of JSON text.

        Raises:
            SerializationError: This codec has not written it, or it names a class that is not declared here.
        """
        return self._codec.loads(value)

    @contextmanager
    def validation_context(self) -> Iterator[None]:
        """Let the library look up class names in the codec's registry instead of importing them."""
        with self._names.validation_context():
            yield


class _Names(JsonSerializer):
    """The library's serializer, used only to find classes by name."""

    def __init__(self, types: TypeRegistry) -> None:
        super().__init__(allowed_types=())
        self._types = types

    def resolve_class(self, qualified_name: str) -> type[Any]:
        """Return a declared class."""
        return self._types.resolve(qualified_name)
