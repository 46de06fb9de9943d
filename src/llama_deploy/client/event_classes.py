"""The classes of streamed events, as far as this process has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import ValidationError

from llama_deploy.client.event_streams import LineStream
from llama_deploy.errors import InvalidRequestError, SerializationError, UnavailableError
from llama_deploy.types import NewAttempt, TaskEvent
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.web.http_exchange import HttpRequest

if TYPE_CHECKING:
    from workflows.events import Event

EventTypes: TypeAlias = "Sequence[str | type[Event]]"
"""Classes of events, or their names."""

_SEPARATOR: Final = ","


def names_of(types: EventTypes | None) -> tuple[str, ...]:
    """Return the names of classes of events.

    Raises:
        InvalidRequestError: A name is empty, or no name of a class.
    """
    names = tuple(each if isinstance(each, str) else each.__name__ for each in types or ())
    for name in names:
        if not name.strip() or _SEPARATOR in name:
            raise InvalidRequestError(f"{name!r} is not the name of a class of events")
    return names


class EventClasses:
    """Makes objects of streamed events.

    The stream names a class without its module. It is looked for among the given classes, then among all
    classes of events that this process has imported.

    Args:
        types: Classes of events. Names among them are ignored.
    """

    def __init__(self, types: EventTypes | None) -> None:
        self._given = {each.__name__: each for each in types or () if not isinstance(each, str)}
        self._found: dict[str, type[Event] | None] = {}

    def object_of(self, event: TaskEvent) -> Event | TaskEvent:
        """Return the object of an event; the event itself if its class is not known or is another one.

        Raises:
            SerializationError: Its fields do not match the class that was given for it.
        """
        given = self._given.get(event.type)
        cls = given or self._find(event.type)
        if cls is None:
            return event
        try:
            return cls(**event.data)
        except ValidationError as exc:
            if given is None:
                return event  # another class of this name
            raise SerializationError(
                f"event {event.index} of type {event.type} does not match the class {cls.__module__}."
                f"{cls.__qualname__}: {describe_validation_error(exc)}"
            ) from exc

    def _find(self, name: str) -> type[Event] | None:
        # The class may be imported after the first events, so only classes that were found are remembered.
        if name not in self._found:
            from workflows.events import Event  # noqa: PLC0415 - not every client needs it

            matches = [cls for cls in _subclasses(Event) if cls.__name__ == name]
            if len(matches) != 1:
                return None
            self._found[name] = matches[0]
        return self._found[name]


class ObjectsOfEvents(LineStream[Any]):
    """The events of a stream as objects of their classes.

    Args:
        stream: The events.
        classes: Their classes.
    """

    def __init__(self, stream: LineStream[Any], classes: EventClasses) -> None:
        self._stream = stream
        self._classes = classes

    def request(self) -> HttpRequest:
        """Return the request for what follows the last event read."""
        return self._stream.request()

    def feed(self, line: bytes) -> Event | TaskEvent | NewAttempt | None:
        """Return the object of the event in a line.

        Raises:
            SerializationError: See `EventClasses.object_of`.
        """
        item = self._stream.feed(line)
        return self._classes.object_of(item) if isinstance(item, TaskEvent) else item

    def interrupted(self, error: UnavailableError | None) -> float | None:
        """Retry as for the events."""
        return self._stream.interrupted(error)


def _subclasses(cls: type[Event]) -> list[type[Event]]:
    """Return a class with all that are derived from it, each once."""
    found: dict[type[Event], None] = {}
    waiting = [cls]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found[each] = None
            waiting += each.__subclasses__()
    return list(found)
