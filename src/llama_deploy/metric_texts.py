"""Puts metrics of several parts and processes together, in the text format of Prometheus.

A supervisor uses this, so it imports nothing of the Prometheus client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

METRICS_PATH: Final = "/metrics"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The text format of Prometheus."""

_SUFFIXES: Final = ("_bucket", "_sum", "_count", "_created", "_total")


@dataclass(slots=True)
class _Family:
    """All lines of one metric, which must stand together."""

    head: list[str] = field(default_factory=list)
    samples: dict[str, None] = field(default_factory=dict)
    """In order; a line that comes twice counts once."""


def merged(texts: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """Return one text for several.

    Args:
        texts: Each with labels to add to all its samples, so that those of two processes are not the same.
            Their values need no escaping.
    """
    families: dict[str, _Family] = {}
    for text, labels in texts:
        added = ",".join(f'{name}="{value}"' for name, value in labels.items())
        name = ""
        # Only line feeds end a line: help texts may contain other separators.
        for line in filter(None, text.split("\n")):
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                family = families.setdefault(name, _Family())
                if line not in family.head:
                    family.head.append(line)
            else:
                belongs = _name_of(line)
                if not _is_of(belongs, name):
                    name = belongs
                families.setdefault(name, _Family()).samples[_labelled(line, belongs, added)] = None
    lines = [line for family in families.values() for line in (*family.head, *family.samples)]
    return "\n".join(lines) + "\n" if lines else ""


def _name_of(sample: str) -> str:
    ends = [end for end in (sample.find("{"), sample.find(" ")) if end >= 0]
    return sample[: min(ends)] if ends else sample


def _is_of(sample: str, family: str) -> bool:
    return sample == family or any(sample == family + suffix for suffix in _SUFFIXES)


def _labelled(sample: str, name: str, added: str) -> str:
    if not added:
        return sample
    rest = sample[len(name) :]
    if rest.startswith("{"):
        return f"{name}{{{added}{'' if rest.startswith('{}') else ','}{rest[1:]}"
    return f"{name}{{{added}}}{rest}"
