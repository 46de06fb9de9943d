"""The layer that takes JSON bodies only.

A web page may send a body as plain text or as a form to any server without a preflight request. JSON must be
declared as such, which no page of another origin can do without one.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.errors import UnsupportedMediaTypeError
from llama_deploy.web.responses import problem_response


class JsonBodies:
    """Answers 415 to a request with a body that is not declared as JSON.

    Args:
        app: The next layer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        has_body = False
        types: list[bytes] = []
        for name, value in scope["headers"]:
            if name == b"content-type":
                types.append(value)
            elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                has_body = True
        if has_body and not (types and all(map(_is_json, types))):
            given = b", ".join(types)[:100].decode("latin-1")
            error = UnsupportedMediaTypeError(
                f"the body has the type {given!r}; send JSON, with 'Content-Type: application/json'"
            )
            await problem_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_json(content_type: bytes) -> bool:
    if content_type == b"application/json":
        return True
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )
