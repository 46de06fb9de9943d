"""What must not be written as plain JSON, although pydantic does it.

Pydantic reads iterators, such as files and endless counters, to their end. It writes keys that are not
strings as their texts, so that of the keys `1` and `"1"` only one remains. And it writes objects with keys
and connections, such as LLMs, as if they were data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llama_deploy.portability.json_parts import SCALARS, parts_finder
from llama_deploy.portability.live_objects import may_be_live, reason_against
from llama_deploy.portability.nodes import is_written_with_names
from llama_deploy.types.json_values import check_keys


def check_plain(value: Any) -> bool:
    """Look for what must not be written.

    Returns:
        Whether the value contains models that are written with the names of their fields; see `nodes`.

    Raises:
        ValueError: It contains an object that must not leave the process (see `live_objects`), such as an
            iterator, or a mapping with keys that are the same in JSON.
    """
    if type(value) in SCALARS:
        return False
    waiting, has_names = [value], False
    # The values are kept here: the id of one that is gone may be given to another.
    seen = {id(value): value}
    while waiting:
        current = waiting.pop()
        cls: type = type(current)
        kind = _kind_of(cls)
        has_names = has_names or kind.has_names
        if kind.may_be_live and (reason := reason_against(current)) is not None:
            raise ValueError(f"it is a {cls.__name__}, {reason}")
        parts = kind.find_parts(current)
        items = parts.values() if isinstance(parts, dict) or kind.is_mapping else parts
        if kind.is_mapping and not set(map(type, parts)) <= {str}:
            check_keys(parts)
            items = (*parts, *items)  # pydantic writes the text of a key, with all that it shows
        # Long lists usually have items of one class; this looks at them in C.
        if SCALARS.issuperset(map(type, items)):
            continue
        for item in items:
            # An object that occurs twice is looked at once; one that contains itself is left to pydantic.
            if type(item) not in SCALARS and id(item) not in seen:
                seen[id(item)] = item
                waiting.append(item)
    return has_names


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of the objects of a class."""

    find_parts: Callable[[Any], Any]
    is_mapping: bool
    may_be_live: bool
    has_names: bool


@functools.lru_cache(maxsize=4096)
def _kind_of(cls: type) -> _Kind:
    return _Kind(parts_finder(cls), issubclass(cls, Mapping), may_be_live(cls), is_written_with_names(cls))
