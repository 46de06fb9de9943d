"""What connections for asyncio and for threads have in common: requests, answers, and their errors.

It imports no HTTP client, so that each connection costs only its own.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llama_deploy.errors import InternalServerError, UnavailableError
from llama_deploy.web.problems import from_problem
from llama_deploy.web.replicas import Replicas
from llama_deploy.web.shown_url import shown_url
from llama_deploy.web.tls_reasons import tls_reason

if TYPE_CHECKING:
    from llama_deploy.web.connection_settings import ConnectionSettings

JSON_HEADERS: Final = {"Content-Type": "application/json"}
"""For a request whose `content` is JSON already."""
CONNECT_SECONDS: Final = 5.0
"""How long to wait for a connection when another replica can be tried."""
AWAY: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
"""Answers after which the next request goes to another replica."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, before any I/O."""

    method: str
    path: str
    """Relative to the connection's base URL; starts with a slash; already quoted."""
    params: Mapping[str, str | int | float | list[str]] = field(default_factory=dict)
    """The query. A list is one parameter that is repeated."""
    json: Any = None
    """The body, as JSON values or pydantic models. None: no body."""
    content: bytes | None = None
    """The encoded body, instead of `json`; `headers` must name its type."""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    """Seconds until the answer is complete; for a stream, between two parts of it. None: as the connection's
    settings say."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The answer of a server to a request that has succeeded."""

    value: Any
    """The decoded JSON, None if there was no body."""
    headers: Mapping[str, str]
    """Their names may be given in any case."""


def encode(request: HttpRequest) -> tuple[bytes | None, dict[str, str]]:
    """Return the body and the headers to send."""
    if request.json is None:
        return request.content, dict(request.headers)
    import pydantic_core  # noqa: PLC0415 - takes a third of the memory of a process that does not need it

    return pydantic_core.to_json(request.json), {**JSON_HEADERS, **request.headers}


def decode(status: int, body: bytes, url: str) -> Any:
    """Return the decoded JSON of an answer, None if it has no body.

    Raises:
        LlamaDeployError: What the answer's problem details name.
    """
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise from_problem(status, body, url=url)
    if not body:
        return None
    import pydantic_core  # noqa: PLC0415 - as in `encode`

    try:
        return pydantic_core.from_json(body)
    except ValueError as exc:
        raise InternalServerError(f"{shown_url(url)} did not answer with JSON: {body[:80]!r}") from exc


def unavailable(request: HttpRequest, url: str, exc: BaseException) -> UnavailableError:
    """Return the error for a request that may have arrived, but has no answer."""
    return UnavailableError(f"{request.method} {shown_url(url + request.path)}: no answer: {reason_of(exc)}")


def unreachable(failures: Mapping[str, BaseException]) -> UnavailableError:
    """Return the error for a request for which no replica opened a connection."""
    reasons = "; ".join(f"{shown_url(url)}: {reason_of(exc)}" for url, exc in failures.items())
    return UnavailableError(
        f"cannot connect to {reasons}" if len(failures) == 1 else f"no replica answers: {reasons}"
    )


def reason_of(exc: BaseException) -> str:
    """Return why a connection failed, in the words of the operating system if it has some."""
    cause = os_error_of(exc)
    words = None
    if isinstance(cause, ssl.SSLError):  # its number is not one of the operating system
        words = tls_reason(cause)
    elif isinstance(cause, OSError):
        # Those of DNS are negative.
        words = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
    words = words or str(cause) or str(exc) or type(exc).__name__
    return "; ".join([words, *getattr(exc, "__notes__", ())])


def os_error_of(exc: BaseException) -> BaseException:
    """Return the error of the operating system or of OpenSSL under that of a driver, or else `exc` itself."""
    # urllib3 has it as an argument of its own.
    return next((each for each in (exc.__cause__, *exc.args) if isinstance(each, OSError)), exc)


def note_certificate(exc: BaseException, url: str, settings: ConnectionSettings) -> None:
    """Add to the error of a request without an answer that the server may not trust the client certificate.

    It then closes the connection, and the client cannot tell this from other reasons.
    """
    if settings.client_certificate is not None and url.startswith("https:"):
        exc.add_note(
            "if no request gets one, the server does not trust the client certificate"
            f" {str(settings.client_certificate[0])!r}"
        )


@contextmanager
def translated(
    request: HttpRequest, url: str, replicas: Replicas, broken: tuple[type[BaseException], ...]
) -> Iterator[None]:
    """Raise an error of a driver as `UnavailableError`, and move on to the next replica.

    Args:
        request: The request that was sent.
        url: The replica that it was sent to.
        replicas: Told that this one has failed.
        broken: What the driver raises when a connection breaks.
    """
    try:
        yield
    except broken as exc:
        replicas.report_failure(url)
        raise unavailable(request, url, exc) from exc
