"""Text of users on terminals and in logs: what controls a terminal or forges a line is escaped."""

from __future__ import annotations

import re
from typing import Final

# Control characters, ends of lines, and changes of the direction of text.
CONTROLS: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Characters, as in a class of a regular expression, that no id and no name may contain.

They do not include lone surrogates, which some regular expressions cannot name.
"""

_CONTROL: Final = re.compile(rf"[{CONTROLS}\ud800-\udfff]")
_CONTROL_IN_LINES: Final = re.compile(rf"(?![\t\n])[{CONTROLS}\ud800-\udfff]")

_BEGINNING: Final = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)
"""Where a line begins like a record."""


def has_controls(text: str) -> bool:
    """Whether a text has characters that `printable` escapes."""
    return _CONTROL.search(text) is not None


def printable(text: str) -> str:
    r"""Return a text on one line: its control characters are escaped as in Python, a line break as `\n`."""
    return _CONTROL.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """Like `printable`, but line breaks and tabs stay."""
    return _CONTROL_IN_LINES.sub(_escaped, text.replace("\r\n", "\n"))


def printable_traceback(text: str) -> str:
    """Like `printable_lines`; a line of an error's text that begins like a record of a log is indented."""
    return _BEGINNING.sub("    ", printable_lines(text))


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]
