"""Tags: words by which tasks and sessions are found."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

MAX_TAGS: Final = 20
"""How many tags a task or a session may have, and a filter may name."""
MAX_TAG_CHARACTERS: Final = 100

Tag = Annotated[str, Field(min_length=1, max_length=MAX_TAG_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A tag: any text on one line."""


def _each_once(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))


Tags = Annotated[list[Tag], AfterValidator(_each_once), Field(max_length=MAX_TAGS)]
"""The tags of a task or a session. One that is repeated counts once."""
