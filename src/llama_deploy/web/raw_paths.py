"""Routing by the path as it was sent, so that a slash within a segment, `%2F`, does not divide it."""

from __future__ import annotations

from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send


class RawPaths:
    """Gives an application the percent-encoded path. Its path parameters have to be decoded.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "http":
            raw = scope.get("raw_path")
            path = quote(scope["path"]) if raw is None else raw.partition(b"?")[0].decode("latin-1")
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)
