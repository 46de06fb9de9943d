"""The codec as others use it: values to JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pydantic_core

from llama_deploy.codec.decoding import Decoder
from llama_deploy.codec.encoding import Encoder
from llama_deploy.codec.faults import Fault
from llama_deploy.codec.type_registry import TypeRegistry
from llama_deploy.errors import SerializationError

_TOO_DEEP = "is nested too deeply; nest less"


class TypedJson:
    """JSON that keeps Python's types, for the classes that a registry knows.

    What JSON holds stays plain. Carried beside it: pydantic models, dataclasses, enums, named tuples and
    exceptions that the registry knows, and classes themselves; datetime, date, time, timedelta with their
    zones; UUID, Decimal, paths, bytes, bytearray, tuple, set, frozenset; dicts with keys of any kind; numbers
    that are not finite. Objects come back as they were, without `__init__` or validators: fields,
    extras, private attributes and the set of fields that were set. Fields with `exclude=True` are left out
    and come back as their default. An object that stands in two places comes back as two. An exception that
    is neither builtin nor known, or that cannot be built again, comes back as a `DescribedError`; its cause,
    context and traceback stay behind. A time zone of another library comes back as one of the standard
    library, see `codec.zones`. A private attribute with a default that holds no data, such as a lock, is left
    out and comes back as its default. Of what tools and clients of LLMs leave in llama_index's objects, as
    much is carried as can be; see `codec.agents`.

    Args:
        types: What may be encoded, and so what may be decoded.
    """

    def __init__(self, types: TypeRegistry) -> None:
        self.types = types
        self._encoder = Encoder(types)
        self._decoder = Decoder(types)

    def encode(self, value: object, *, path: str = "$") -> Any:
        """Return `value` as JSON values, all of which UTF-8 can hold.

        Args:
            value: The value. It is not changed, and the result shares nothing mutable with it.
            path: Where the value stands, for errors.

        Raises:
            SerializationError: Something in it cannot be carried; text and `path` say what and where.
        """
        try:
            return self._encoder.encode(value)
        except Fault as fault:
            raise fault.as_error(path) from (fault.__cause__ or None)
        except RecursionError as exc:
            raise SerializationError(f"{path} {_TOO_DEEP}", path=path) from exc

    def decode(self, data: Any) -> Any:
        """Return the value that JSON values hold. No name in them leads to an import.

        `codec.decoding` lists the code of declared classes that runs.

        Args:
            data: What `encode` returned, possibly in another process. It is not changed.

        Raises:
            SerializationError: It was not written by this codec, or names a class or a field that is not
            known here.
        """
        try:
            return self._decoder.decode(data)
        except Fault as fault:
            raise fault.as_error("$") from (fault.__cause__ or None)
        except RecursionError as exc:
            raise SerializationError(f"$ {_TOO_DEEP}") from exc
        except Exception as exc:
            # Bad data may break what hashes, compares or fills in objects: anybody's code.
            raise SerializationError(f"$ cannot be read: {type(exc).__name__}: {exc}") from exc

    def dumps(self, value: object, *, path: str = "$") -> str:
        """Return `value` as JSON text; see `encode`."""
        encoded = self.encode(value, path=path)
        try:
            return pydantic_core.to_json(encoded).decode()
        except pydantic_core.PydanticSerializationError:
            # It is the faster one, but gives up at 200 levels.
            return json.dumps(encoded, ensure_ascii=False, separators=(",", ":"))

    def loads(self, text: str) -> Any:
        """Return the value that JSON text holds; see `decode`.

        Raises:
            SerializationError: It is not JSON, or as for `decode`.
        """
        return self.decode(_parse(text))


def _parse(text: str) -> Any:
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        # It is the faster one, but gives up at 200 levels.
        try:
            return json.loads(text)
        except RecursionError as exc:
            raise SerializationError(f"$ {_TOO_DEEP}") from exc
        except ValueError as exc:
            raise SerializationError(f"$ is not JSON: {exc}") from exc
