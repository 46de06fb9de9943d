"""Many events of a stream as one value that takes little space. No I/O.

An agent repeats its whole answer so far in each event, so a stream grows with the square of what was
written. In a pack, an event is written as what has changed since the event of the same class before it, field
by field: a text that has grown is what was added to it. The lines that result are compressed together.

A pack is complete in itself: to read it takes no other pack. It is read from its beginning, one event at a
time, so a reader needs the memory of the lines and of one event.

The lines of format 1, each a JSON list:

* `[class, attempt, step_run, data]`: an event. `data` is the object, or a text if other white space or
  escapes were used than `json.dumps` writes.
* `[number, changes]` or `[number, changes, attempt, step_run]`: an event of a class that has occurred, by the
  number of its first line among those of the first form. A change of a field is a text that is added before
  the last character of its JSON; `[text]`, its new JSON; or `[n, text]`, which keeps the first n characters.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, Self

from llama_deploy.errors import InternalServerError
from llama_deploy.state_stores.records import EventPackRecord, EventRecord
from llama_deploy.types.shared_text import shared_start

PACK_FORMAT: Final = 1
MAX_PACK_CHARACTERS: Final = 256 * 1024
"""With so many characters of lines a pack is full. A line is not divided, so a pack may be larger."""
MAX_PACK_EVENTS: Final = 4096
_LEVEL: Final = 6
_MIN_KEPT: Final = 32
"""How many characters two texts must share before the second is written as a change of the first."""


class _Fields:
    """The fields of the last event of a class: their names, and the JSON of each."""

    __slots__ = ("_added", "attempt", "names", "number", "step_run", "texts")

    def __init__(self, number: int) -> None:
        self.number = number
        self.names: tuple[str, ...] = ()
        self.texts: dict[str, str] = {}
        self._added: dict[str, list[str]] = {}
        """What was added to texts and is not yet in `texts`: joined once, however often a text has grown."""
        self.attempt: int | None = None
        self.step_run: int | None = None

    def set(self, data: dict[str, Any]) -> None:
        self.texts = {name: json.dumps(value) for name, value in data.items()}
        self.names = tuple(self.texts)
        self._added.clear()

    def change(self, name: str, change: str | list[Any]) -> None:
        """Apply the change of a field; see the form of lines."""
        match change:
            case str():
                self._added.setdefault(name, []).append(change)
            case [text]:
                self._added.pop(name, None)
                self.texts[name] = text
            case [kept, text]:
                self.settle()
                self.texts[name] = self.texts[name][:kept] + text
            case _:
                raise InternalServerError(f"a pack of events holds an unknown change: {change!r:.80}")

    def settle(self) -> None:
        """Bring `texts` up to date."""
        for name, added in self._added.items():
            before = self.texts[name]
            self.texts[name] = "".join((before[:-1], *added, before[-1]))
        self._added.clear()

    def text(self) -> str:
        """Return the data of the event as `json.dumps` writes it."""
        self.settle()
        return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in self.texts.items()) + "}"


class _State:
    """The classes of the events so far."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._fields: list[_Fields] = []

    def find(self, name: str) -> _Fields | None:
        """Return the last event of a class, None if there is none that others can refer to."""
        number = self._numbers.get(name)
        return None if number is None else self._fields[number]

    def add(self, name: str) -> _Fields:
        """Return the place for the last event of a class."""
        number = self._numbers.setdefault(name, len(self._fields))
        if number == len(self._fields):
            self._names.append(name)
            self._fields.append(_Fields(number))
        return self._fields[number]

    def apply(self, line: list[Any]) -> tuple[str, _Fields | str]:
        """Return the class of the event in a line, and its fields or the text of its data."""
        if isinstance(line[0], str):
            name, attempt, step_run, data = line
            fields = self.add(name)
            fields.attempt, fields.step_run = attempt, step_run
            if isinstance(data, str):
                fields.set({})
                return name, data
            fields.set(data)
            return name, fields
        fields = self._fields[line[0]]
        for name, change in line[1].items():
            fields.change(name, change)
        if len(line) > 2:  # noqa: PLR2004 - see the form of lines
            fields.attempt, fields.step_run = line[2:]
        return self._names[line[0]], fields


class PackWriter:
    """Makes a pack of consecutive events of a task.

    Args:
        task_id: The task.
        position: The position of the first event.
    """

    def __init__(self, task_id: str, position: int) -> None:
        self._task_id = task_id
        self._position = position
        self._state = _State()
        self._lines: list[str] = []
        self._characters = 0

    @classmethod
    def continuing(cls, pack: EventPackRecord) -> Self:
        """Return a writer that adds to a pack."""
        writer = cls(pack.task_id, pack.position)
        for line in _lines(pack):
            writer._state.apply(json.loads(line))
            writer._append(line)
        return writer

    @property
    def is_full(self) -> bool:
        """Whether no further event should be added."""
        return self._characters >= MAX_PACK_CHARACTERS or len(self._lines) >= MAX_PACK_EVENTS

    def add(self, event: EventRecord) -> None:
        """Add the event that follows the last one."""
        data = _object(event.data)
        fields = self._state.find(event.type)
        if fields is None or fields.names != tuple(data):
            self._add_whole(event, data)
            return
        fields.settle()
        texts = {name: json.dumps(value) for name, value in data.items()}
        changes = {
            name: _change(fields.texts[name], text)
            for name, text in texts.items()
            if text != fields.texts[name]
        }
        before, fields.texts = fields.texts, texts
        if fields.text() != event.data:
            fields.texts = before
            self._add_whole(event, data)
            return
        line: list[Any] = [fields.number, changes]
        if (fields.attempt, fields.step_run) != (event.attempt, event.step_run):
            fields.attempt, fields.step_run = event.attempt, event.step_run
            line += [event.attempt, event.step_run]
        self._append(_written(line))

    def _add_whole(self, event: EventRecord, data: dict[str, Any]) -> None:
        fields = self._state.add(event.type)
        fields.attempt, fields.step_run = event.attempt, event.step_run
        fields.set(data)
        is_usual = fields.text() == event.data
        if not is_usual:
            fields.set({})
        self._append(_written([event.type, event.attempt, event.step_run, data if is_usual else event.data]))

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._characters += len(line)

    def finish(self) -> EventPackRecord:
        """Return the pack of the events so far."""
        data = zlib.compress("\n".join(self._lines).encode(), _LEVEL)
        return EventPackRecord(self._task_id, self._position, len(self._lines), PACK_FORMAT, data)


def packed(events: Iterable[EventRecord], *, onto: EventPackRecord | None = None) -> list[EventPackRecord]:
    """Return packs of consecutive events of a task, the first of them `onto` with what has been added to it.

    Args:
        events: The events, at least one. They follow those of `onto`.
        onto: The last pack of the stream, None if there is none.
    """
    packs: list[EventPackRecord] = []
    writer = None if onto is None else PackWriter.continuing(onto)
    for event in events:
        if writer is not None and writer.is_full:
            packs.append(writer.finish())
            writer = None
        if writer is None:
            writer = PackWriter(event.task_id, event.position)
        writer.add(event)
    if writer is not None:
        packs.append(writer.finish())
    return packs


def unpacked(pack: EventPackRecord, *, after: int = -1) -> Iterator[EventRecord]:
    """Yield the events of a pack that follow a position, each when it is asked for.

    Raises:
        InternalServerError: A newer release has written the pack.
    """
    state = _State()
    for position, line in enumerate(_lines(pack), start=pack.position):
        name, found = state.apply(json.loads(line))
        if position <= after:
            continue
        data = found if isinstance(found, str) else found.text()
        fields = state.add(name)
        yield EventRecord(
            pack.task_id, position, name, data, attempt=fields.attempt, step_run=fields.step_run
        )


def _lines(pack: EventPackRecord) -> list[str]:
    if pack.format != PACK_FORMAT:
        raise InternalServerError(
            f"events of task {pack.task_id} are stored in format {pack.format}, and this release reads"
            f" {PACK_FORMAT}: update this control plane"
        )
    return zlib.decompress(pack.data).decode().split("\n")


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text, an empty one if there is none: then the text is kept as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _written(line: list[Any]) -> str:
    return json.dumps(line, separators=(",", ":"))


def _change(before: str, after: str) -> str | list[Any]:
    """Return how a line writes that a JSON text has become another."""
    if len(before) >= _MIN_KEPT and after.startswith(before[:-1]) and after[-1] == before[-1]:
        return after[len(before) - 1 : -1]
    kept = shared_start(before, after)
    return [after] if kept < _MIN_KEPT else [kept, after[kept:]]
