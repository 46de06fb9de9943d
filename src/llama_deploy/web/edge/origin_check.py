"""The layers that decide which web pages may use this server.

A browser attaches the origin of a page to most requests that the page makes, and lets a page of another
origin send many of them without asking the server first. Programs that are no browsers send no `Origin`.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.errors import ForeignOriginError
from llama_deploy.web.edge.authorities import parse_authority, parse_origin
from llama_deploy.web.responses import problem_response

_OWN_SITES: Final = frozenset({b"same-origin", b"none"})
"""Values of `Sec-Fetch-Site` for a request of an own page and for one that the user began."""
_EXPOSED_HEADERS: Final = ("ETag", "Retry-After")
_MAX_CACHED_ORIGINS: Final = 256


class OriginCheck:
    """Answers 403 to requests that a web page of another origin has made, unless the origin is allowed.

    All methods are checked: a `GET` may have effects too, as at the message queue, and no page can read an
    answer that CORS does not allow. A preflight request for an origin that is not allowed is answered 403.

    Args:
        app: The next layer.
        allowed: The origins of pages that may use the server; `*` is every origin.
        allow_navigation: Whether links on pages of other origins may lead here, as to a page for people.
        setting: The setting that adds an origin, for the error. None: there is none.
    """

    def __init__(
        self, app: ASGIApp, *, allowed: Collection[str], allow_navigation: bool, setting: str | None
    ) -> None:
        self._app = app
        self._allows_all = "*" in allowed
        self._allowed = frozenset(allowed)
        self._allow_navigation = allow_navigation
        self._hint = f"; to allow it, add it to {setting}" if setting else ""
        # Few origins are seen, in every request of a page.
        self._is_allowed = lru_cache(maxsize=_MAX_CACHED_ORIGINS)(self._judge)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        origin = host = site = b""
        is_page = is_navigation = False
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = origin + b", " + value if is_page else value
                is_page = True
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-dest":
                is_navigation = value == b"document"
        if is_page:
            passes = self._is_allowed(origin, host)
        else:
            passes = (
                not site
                or site in _OWN_SITES
                or self._allows_all
                or (is_navigation and self._allow_navigation and scope["method"] in ("GET", "HEAD"))
            )
        if passes:
            await self._app(scope, receive, send)
            return
        named = origin[:200].decode("latin-1") if is_page else None
        page = "on another site" if named is None else f"of the origin {named!r}"
        error = ForeignOriginError(f"a web page {page} must not use this server{self._hint}", origin=named)
        await problem_response(error)(scope, receive, send)

    def _judge(self, value: bytes, host: bytes) -> bool:
        if self._allows_all:
            return True
        origin = parse_origin(value)
        if origin is None:  # `null`, as of a sandboxed page, or several
            return False
        own = parse_authority(host)
        return str(origin) in self._allowed or (own is not None and origin.is_served_at(own))


def with_cors(app: ASGIApp, *, origins: Collection[str]) -> ASGIApp:
    """Return `app` behind a layer that answers preflight requests and lets `origins` read answers."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=_EXPOSED_HEADERS,
    )
