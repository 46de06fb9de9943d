"""Memory of a limited size, such as of the topics that exist at the broker."""

from __future__ import annotations

from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MAX: Final = 10_000


def remember(memory: dict[K, V], key: K, value: V) -> None:
    """Store a value; the oldest one is dropped when there are 10,000 others."""
    memory[key] = value
    if len(memory) > _MAX:
        del memory[next(iter(memory))]
