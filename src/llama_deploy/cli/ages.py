"""Ages such as `30d` on the command line."""

from __future__ import annotations

import re
from typing import Final

from llama_deploy.cli.error_messages import CommandError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def age_seconds(text: str) -> float:
    """Return the seconds of an age such as `30d`.

    Raises:
        CommandError: The text is not an age.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise CommandError(
            f"{text!r} is not an age", hint="write a number with s, m, h, d or w, such as 90m, 12h or 30d"
        )
    return float(match[1]) * _SECONDS[match[2]]
