"""The public interface of the codec: values to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pydantic_core

from llama_deploy.codec.decoding import Decoder
from llama_deploy.codec.encoding import Encoder
from llama_deploy.codec.faults import Fault
from llama_deploy.codec.type_registry import TypeRegistry
from llama_deploy.errors import SerializationError

_TOO_DEEP = "is nested too deeply; nest less"


class TypedJson:
    """JSON that keeps Python types, for the classes that a registry knows.

    Plain JSON stays as it is. Also supported are: pydantic models, dataclasses, enums, named tuples and
    exceptions that the registry knows, and these classes themselves; datetime, date, time and timedelta with
    time zones; UUID, Decimal, paths, bytes, bytearray, tuple, set, frozenset; dicts with keys of any kind;
    numbers that are not finite.

    Objects are restored as they were, without `__init__` or validators: fields, extra fields, private
    attributes, and which fields were set. Exceptions from this rule:

    * A field with `exclude=True`, or a private attribute that does not hold data, such as a lock, is restored
      with its default.
    * An object that occurs in two places becomes two objects.
    * An exception that is neither builtin nor known, or that cannot be rebuilt, becomes a `DescribedError`.
      Cause, context and traceback are omitted.
    * A time zone of another library becomes one of the standard library, see `codec.zones`.
    * The raw objects of tools and LLM clients in llama_index's objects are kept as far as possible, see
      `codec.agents`.

    Args:
        types: The classes that can be encoded and decoded.
    """

    def __init__(self, types: TypeRegistry) -> None:
        self.types = types
        self._encoder = Encoder(types)
        self._decoder = Decoder(types)

    def encode(self, value: object, *, path: str = "$") -> Any:
        """Return `value` as JSON values; all strings are valid UTF-8.

        Args:
            value: The value. It is not changed, and the result does not share mutable objects with it.
            path: The place of the value, for errors.

        Raises:
            SerializationError: Something in it cannot be encoded; text and `path` say what and where.
        """
        try:
            return self._encoder.encode(value)
        except Fault as fault:
            raise fault.as_error(path) from (fault.__cause__ or None)
        except RecursionError as exc:
            raise SerializationError(f"{path} {_TOO_DEEP}", path=path) from exc

    def decode(self, data: Any) -> Any:
        """Return the value of JSON values. A name in them never causes an import.

        `codec.decoding` lists the code of declared classes that runs.

        Args:
            data: What `encode` returned, possibly in another process. It is not changed.

        Raises:
            SerializationError: This codec has not written it, or it names a class or a field that is not
            known here.
        """
        try:
            return self._decoder.decode(data)
        except Fault as fault:
            raise fault.as_error("$") from (fault.__cause__ or None)
        except RecursionError as exc:
            raise SerializationError(f"$ {_TOO_DEEP}") from exc
        except Exception as exc:
            # Bad data may break the code of any class: hashing, comparison, defaults.
            raise SerializationError(f"$ cannot be read: {type(exc).__name__}: {exc}") from exc

    @contextmanager
    def noting(self, classes: dict[str, bool]) -> Iterator[None]:
        """Note the names of the users' classes that are encoded in the body, which must not await.

        Args:
            classes: Gets the names; True if an object of the class was encoded, and not only the class.
        """
        self._encoder.noted = classes
        try:
            yield
        finally:
            self._encoder.noted = None

    def dumps(self, value: object, *, path: str = "$") -> str:
        """Return `value` as JSON text; see `encode`."""
        encoded = self.encode(value, path=path)
        try:
            return pydantic_core.to_json(encoded).decode()
        except pydantic_core.PydanticSerializationError:
            # pydantic is faster, but gives up at 200 levels.
            return json.dumps(encoded, ensure_ascii=False, separators=(",", ":"))

    def loads(self, text: str) -> Any:
        """Return the value of JSON text; see `decode`.

        Raises:
            SerializationError: It is not JSON, or as for `decode`.
        """
        return self.decode(_parse(text))


def _parse(text: str) -> Any:
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        # pydantic is faster, but gives up at 200 levels.
        try:
            return json.loads(text)
        except RecursionError as exc:
            raise SerializationError(f"$ {_TOO_DEEP}") from exc
        except ValueError as exc:
            raise SerializationError(f"$ is not JSON: {exc}") from exc
