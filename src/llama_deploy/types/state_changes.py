"""How the stored state of a run leads back to the one before, as the difference of two texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Final, Self, TypeAlias

from pydantic import BaseModel, Field, field_validator

from llama_deploy.types.exact_values import Count
from llama_deploy.types.json_values import utf8_bytes
from llama_deploy.types.run_points import NO_MARK, mark_of
from llama_deploy.types.shared_text import shared_end, shared_start

MAX_CHANGE_BYTES: Final = 64 * 1024
"""How large the change of a state may be, as UTF-8, to be written with the state."""
MAX_PIECES: Final = 4096
"""How many pieces of two texts are compared one by one. Of more, only their ends are compared."""
_SEPARATOR: Final = ","
_COLON: Final = ":"
"""Where a stored state is cut into pieces to find those that have changed. Other places would do as well."""

Splice: TypeAlias = tuple[Count, Count, str]
"""Where a difference begins in a text, how many characters of it to replace, and by what."""


class StateChange(BaseModel):
    """How the stored state of a run leads back to the one that it has replaced."""

    after: str
    """The mark of the state that was written."""
    before: str
    """The mark of the state before. `NO_MARK`: none was stored."""
    splices: list[Splice] = Field(default_factory=list)
    """What differs in the state that was written, in order."""

    @field_validator("splices")
    @classmethod
    def _check_order(cls, splices: list[Splice]) -> list[Splice]:
        """Refuse splices that would repeat parts of the state, of which there could be very many."""
        place = 0
        for start, length, _ in splices:
            if start < place or length < 0:
                raise ValueError("the splices are not in order")
            place = start + length
        return splices

    @classmethod
    def between(cls, before: str | None, after: str) -> Self | None:
        """Return the change between two stored states. None: it is larger than `MAX_CHANGE_BYTES`."""
        splices = [] if before is None else _splices(before, after)
        if splices is None:
            return None
        return cls(after=mark_of(after), before=mark_of(before), splices=splices)

    def undone(self, state: str) -> str | None:
        """Return the state before, given the one that was written. The marks tell whether it is that one."""
        if self.before == NO_MARK:
            return None
        parts: list[str] = []
        place = 0
        for start, length, text in self.splices:
            parts += [state[place:start], text]
            place = start + length
        return "".join([*parts, state[place:]])


def dump_change(before: str | None, after: str) -> str | None:
    """Return the change between two stored states as text. None: it is larger than `MAX_CHANGE_BYTES`."""
    change = StateChange.between(before, after)
    if change is None:
        return None
    text = json.dumps(change.model_dump(), separators=(",", ":"), ensure_ascii=False)
    return text if utf8_bytes(text) <= MAX_CHANGE_BYTES else None


def _splices(before: str, after: str) -> list[Splice] | None:
    """Return what differs. None: it is too large."""
    splices: list[Splice] = []
    place = replaced = 0
    for old, new in _parts(before, after):
        if old != new:
            same, rest = _shared_ends(old, new)
            text = old[same : len(old) - rest]
            replaced += len(text)
            if replaced > MAX_CHANGE_BYTES:
                return None
            splices.append((place + same, len(new) - rest - same, text))
        place += len(new)
    return splices


def _parts(before: str, after: str) -> Iterator[tuple[str, str]]:
    """Cut two stored states into pairs of parts, in order."""
    # The first line is the signature. It always differs, wherever the state does.
    old_line, old_break, old = before.partition("\n")
    new_line, new_break, new = after.partition("\n")
    yield old_line + old_break, new_line + new_break
    start, end = _shared_ends(old, new)
    yield old[:start], new[:start]
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    if max(old.count(_SEPARATOR), new.count(_SEPARATOR)) < MAX_PIECES:
        yield from _aligned(old, new)
    else:
        yield old, new  # to compare more would take longer than to write the state


def _aligned(old: str, new: str) -> Iterator[tuple[str, str]]:
    """Cut two JSON texts at the values that both have under the same key, and yield the pairs in order.

    A key that occurs twice is not looked for, so that the time is proportional to the length.
    """
    olds, news = _pieces(old), _pieces(new)
    keys = list(map(_key, olds))
    counts = Counter(keys)
    places = {key: index for index, key in enumerate(keys) if counts[key] == 1}
    old_index = new_index = 0
    for index, piece in enumerate(news):
        found = places.get(_key(piece), -1)
        if found >= old_index:
            yield "".join(olds[old_index:found]), "".join(news[new_index:index])
            yield olds[found], piece
            old_index, new_index = found + 1, index + 1
    yield "".join(olds[old_index:]), "".join(news[new_index:])


def _pieces(text: str) -> list[str]:
    """Cut a text where the values of a JSON text may end."""
    *pieces, last = text.split(_SEPARATOR)
    return [*(piece + _SEPARATOR for piece in pieces), last]


def _key(piece: str) -> str:
    """Return with which key a piece begins, or the piece itself."""
    key, colon, _ = piece.partition(_COLON)
    return key if colon else piece


def _shared_ends(one: str, other: str) -> tuple[int, int]:
    """Return with how many characters both texts begin, and with how many of the rest they end."""
    start = shared_start(one, other)
    return start, shared_end(one[start:], other[start:])
