"""A text that names long strings of a value in place of repeating them.

The text of a result that is a model, such as `Report(body='...')`, holds the same strings as its JSON. Both
together would be twice as large as the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from llama_deploy.types.exact_values import Count

MIN_TEXT: Final = 16 * 1024
"""How many characters a text has before it is worth the search."""
MIN_STRING: Final = 64
"""How long a string is that is named."""
_MAX_MISSES: Final = 32
"""How many strings may be searched in vain: each search reads the whole text."""

Part: TypeAlias = str | Count
"""A piece of the text, or the number of a string.

2n is the n-th long string of the value, in the order of its JSON; 2n+1 is how Python shows that string,
without the quotes.
"""


def shortened(text: str, value: Any) -> list[Part] | None:
    """Return the parts of a text. None: it holds too little of the value, or is short.

    Args:
        text: The text.
        value: JSON.
    """
    if len(text) < MIN_TEXT:
        return None
    parts: list[Part] = []
    position = misses = 0
    for number, string in enumerate(_long_strings(value)):
        found = _find(text, string, position)
        if found is None:
            misses += 1
            if misses > _MAX_MISSES:
                break
            continue
        start, end, is_shown = found
        parts += [text[position:start], 2 * number + is_shown]
        position = end
    parts.append(text[position:])
    kept = sum(len(part) for part in parts if isinstance(part, str))
    return parts if 2 * kept < len(text) and whole(parts, value) == text else None


def whole(parts: Sequence[Part], value: Any) -> str:
    """Return the text that has these parts.

    Raises:
        ValueError: The value does not have the strings that are named.
    """
    strings = list(_long_strings(value))
    try:
        return "".join(part if isinstance(part, str) else _named(strings, part) for part in parts)
    except IndexError as exc:
        raise ValueError(f"the value has {len(strings)} long strings, but the text names others") from exc


def _named(strings: Sequence[str], number: int) -> str:
    string = strings[number // 2]
    return _shown(string) if number % 2 else string


def _find(text: str, string: str, position: int) -> tuple[int, int, bool] | None:
    for is_shown, form in ((False, string), (True, _shown(string))):
        start = text.find(form, position)
        if start >= 0:
            return start, start + len(form), is_shown
    return None


def _shown(string: str) -> str:
    return repr(string)[1:-1]


def _long_strings(value: Any) -> Iterator[str]:
    """Yield the long strings in a value, in order. Without recursion: values may be deep."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as string if len(string) >= MIN_STRING:
                yield string
            case dict() as fields:
                waiting += reversed(fields.values())
            case list() as items:
                waiting += reversed(items)
