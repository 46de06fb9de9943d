"""What may be shown of a URL."""

from __future__ import annotations

import re
from typing import Final

_PARTS: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)?(?P<place>[^?#]*)(?P<rest>.*)", re.DOTALL)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def shown_url(url: str) -> str:
    """Return a URL as errors, logs and a `repr` may show it: without the secrets that it may contain.

    Credentials and the fragment are left out; `***` replaces the values of the query.
    """
    parts = _PARTS.fullmatch(url)
    scheme, place, rest = parts.group("scheme", "place", "rest") if parts else ("", "", "")
    if "@" in rest:
        # A password with ? or # begins before, and is not told from the host.
        return f"{scheme or ''}***"
    query = rest.partition("#")[0].removeprefix("?")
    shown = f"{scheme or ''}{place.rpartition('@')[2]}"
    return f"{shown}?{'&'.join(map(_without_value, query.split('&')))}" if query else shown


def shown_scheme(url: str) -> str:
    """Return the scheme of a URL as errors may show it: `***` if it is none, and may hold credentials."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator and _SCHEME.fullmatch(scheme) else "***"


def _without_value(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}=***" if equals else "***"
