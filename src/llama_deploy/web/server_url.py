"""The base URL of a server, which cannot show its credentials."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

from llama_deploy.web.shown_url import shown_url

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

_NO_HOST: Final = "does not begin with http:// or https:// and a host"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class ServerUrl(str):
    """A base URL without a slash at its end. Its text does not have the credentials that it was made with.

    So whatever formats, logs or compares it never shows them. Where it is called, `authorization` is sent.

    Args:
        url: The URL, such as `https://user:password@host:8000`. Characters that separate the parts of a URL
            are percent-encoded in user and password.

    Attributes:
        authorization: The value of the header `Authorization` for the credentials. None: there are none.
        problem: Why no server can have this URL, without the URL. None: it is well-formed.
    """

    __slots__ = ("authorization", "problem")

    authorization: str | None
    problem: str | None

    def __new__(cls, url: str) -> Self:
        """Take the credentials out of the URL."""
        if isinstance(url, cls):
            return url
        authorization, problem = None, None
        try:
            parts = urlsplit(url)
            text = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            authorization, problem = _authorization(parts), _problem(parts)
        except ValueError:
            text, problem = shown_url(url), "is malformed"
        self = super().__new__(cls, (shown_url(url) if problem else text).rstrip("/"))
        self.authorization, self.problem = authorization, problem
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        """Make it from a text; keep one that is made already, with its credentials."""
        from pydantic_core import core_schema  # noqa: PLC0415 - short commands start faster without it

        return core_schema.no_info_before_validator_function(
            _from_text,
            core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(_as_text, when_used="json"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        """Describe it as the text that it is."""
        return {"type": "string"}


def _from_text(value: Any) -> Any:
    return ServerUrl(value) if isinstance(value, str) else value


def _as_text(url: ServerUrl) -> str:
    return str(url)


def _authorization(parts: SplitResult) -> str | None:
    """Return what HTTP Basic Authorization (RFC 7617) sends for the credentials of a URL."""
    if not parts.username and not parts.password:
        return None
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _problem(parts: SplitResult) -> str | None:
    """Return why a URL is not the base URL of a server."""
    if parts.scheme not in ("http", "https"):
        return _NO_HOST
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # A password with an unencoded slash ends where the path begins.
        return (
            "has an @ after its host: if it holds credentials, percent-encode their special characters,"
            " such as %2F for / and %40 for @"
        )
    if parts.query or parts.fragment:
        return "has a query or a fragment"
    return _problem_of_host(parts) or _problem_of_credentials(parts)


def _problem_of_host(parts: SplitResult) -> str | None:
    if not parts.hostname:
        return _NO_HOST
    if not _is_host(parts.netloc, parts.hostname):
        return "names a host that cannot exist"
    try:
        usable = parts.port != 0
    except ValueError:
        usable = False
    return None if usable else "has a port that is not a number from 1 to 65535"


def _problem_of_credentials(parts: SplitResult) -> str | None:
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if ":" in user:
        return "has a user name with a colon, which HTTP Basic Authorization cannot carry"
    if _CONTROL.search(user + password):
        return "has control characters in its credentials, which HTTP Basic Authorization cannot carry"
    return None


def _is_host(netloc: str, host: str) -> bool:
    """Whether the HTTP clients accept a host; their errors would show the URL."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return "\\" not in netloc.rpartition("@")[2]
