"""Types of the settings that name hosts and origins."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from llama_deploy.web.edge.authorities import parse_host_name, parse_origin


def _split(value: object) -> object:
    """Read a list from an environment variable: a JSON list, or values separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _check_host(pattern: str) -> str:
    if pattern == "*":
        return pattern
    wildcard = "*." if pattern.startswith("*.") else ""
    name = parse_host_name(pattern.removeprefix(wildcard))
    if name is None:
        raise ValueError(
            f"{pattern!r} is not a host; write the name alone, such as 'deploy.example.com', '*.example.com'"
            " for all names below it, or '*' for every name"
        )
    return wildcard + name


def _check_origin(text: str) -> str:
    if text == "*":
        return text
    origin = parse_origin(text.encode())
    if origin is None:
        raise ValueError(
            f"{text!r} is not an origin; write scheme and host without a path, such as"
            " 'https://app.example.com', or '*' for every origin"
        )
    return str(origin)


TrustedHostNames = Annotated[
    list[Annotated[str, AfterValidator(_check_host)]], NoDecode, BeforeValidator(_split)
]
"""Host names; in the environment separated by commas."""
AllowedOrigins = Annotated[
    list[Annotated[str, AfterValidator(_check_origin)]] | None, NoDecode, BeforeValidator(_split)
]
"""Origins of web pages; in the environment separated by commas."""
