"""All layers between the HTTP server and the routes, in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_deploy.concurrency.cancellation import is_being_cancelled
from llama_deploy.errors import UnavailableError
from llama_deploy.web.edge.access import of_shortcuts
from llama_deploy.web.edge.access_table import AccessTable
from llama_deploy.web.edge.authentication import Anonymous, Authentication, Authenticator, OnDenied
from llama_deploy.web.edge.body_budget import DEFAULT_MAX_TOTAL_BODY_BYTES
from llama_deploy.web.edge.body_limit import DEFAULT_MAX_BODY_BYTES, BodyLimit
from llama_deploy.web.edge.head_requests import HeadRequests
from llama_deploy.web.edge.json_bodies import JsonBodies
from llama_deploy.web.edge.origin_check import OriginCheck, with_cors
from llama_deploy.web.edge.probes import BriefProbes
from llama_deploy.web.edge.tracing import TraceParentReader, Tracer, Tracing
from llama_deploy.web.edge.trusted_hosts import TrustedHosts
from llama_deploy.web.responses import problem_response
from llama_deploy.web.shortcuts import Routes, Shortcuts

_NO_SHORTCUTS: Final[Routes] = MappingProxyType({})
_POLICY_VIOLATION: Final = 1008


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What the layers of one server check."""

    env_prefix: str
    """The prefix of the server's settings in the environment, for errors that name one."""
    hosts: Collection[str]
    """Names under which the server is reached, beside IP addresses and `localhost`; see `TrustedHosts`."""
    cors_origins: Collection[str] | None = None
    """Origins of web pages that may use the server. None: the server has no such setting."""
    allow_navigation: bool = False
    """Whether links on pages of other origins may lead to this server."""
    no_head: Collection[str] = ()
    """The beginnings of paths whose GET changes something, so that HEAD is refused with 405."""
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    max_total_body_bytes: int = DEFAULT_MAX_TOTAL_BODY_BYTES
    authenticator: Authenticator = field(default_factory=Anonymous)
    access: AccessTable = field(default_factory=dict)
    """What each route needs, for the shortcuts, and which routes are open."""
    on_denied: OnDenied | None = None
    """Learns of requests that are refused with 401 or 403. None: nobody does."""
    tracer: Tracer = field(default_factory=TraceParentReader)


def build_edge(
    app: ASGIApp,
    settings: EdgeSettings,
    *,
    shortcuts: Routes = _NO_SHORTCUTS,
    layers: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
) -> ASGIApp:
    """Return `app` behind all layers: no route, fast or documented, can be reached past one.

    The order: trusted hosts, origins and CORS, trace, authentication, body limit, JSON bodies, the
    server's own layers, shortcuts, HEAD requests. Probes for untrusted hosts pass all layers by, and are
    answered without reasons.

    Args:
        app: The application, which documents all routes.
        settings: What is checked.
        shortcuts: Routes that are answered before the application; see `Shortcuts`.
        layers: The server's own layers, the outermost first.
    """
    origins = settings.cors_origins or ()
    # Without authentication every caller has all rights, so nothing is checked.
    is_checked = not isinstance(settings.authenticator, Anonymous)
    needed = of_shortcuts(settings.access, shortcuts) if is_checked else {}
    stack: ASGIApp = Shortcuts(HeadRequests(app, excluded=settings.no_head), shortcuts, needed=needed)
    for layer in reversed(layers):
        stack = layer(stack)
    stack = JsonBodies(stack)
    stack = BodyLimit(
        stack,
        max_body_bytes=settings.max_body_bytes,
        max_total_body_bytes=settings.max_total_body_bytes,
    )
    stack = Authentication(
        stack,
        authenticator=settings.authenticator,
        table=settings.access,
        on_denied=settings.on_denied,
    )
    stack = Tracing(stack, tracer=settings.tracer)
    if origins:
        stack = with_cors(stack, origins=origins)
    stack = OriginCheck(
        stack,
        allowed=origins,
        allow_navigation=settings.allow_navigation,
        setting=None if settings.cors_origins is None else f"{settings.env_prefix}CORS_ORIGINS",
    )
    stack = TrustedHosts(
        stack,
        names=settings.hosts,
        setting=f"{settings.env_prefix}TRUSTED_HOSTS",
        probes=BriefProbes(HeadRequests(app)),
    )
    return _HttpOnly(stack, app)


class _HttpOnly:
    """Passes requests to the layers and the lifespan to the application; refuses WebSockets."""

    def __init__(self, layers: ASGIApp, app: ASGIApp) -> None:
        self._layers = layers
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await self._layers(scope, receive, send)
            except asyncio.CancelledError:
                await _end(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, _quiet_when_cancelled(send))
        else:
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})


async def _end(scope: Scope, receive: Receive, send: Send) -> None:
    """End a request that is cancelled, with its whole process, without a traceback."""
    try:
        await problem_response(UnavailableError("the server stops; retry"))(scope, receive, send)
    except RuntimeError:  # of uvicorn: the answer has begun
        await send({"type": "http.response.body", "body": b""})


def _quiet_when_cancelled(send: Send) -> Send:
    """Let a server that is cancelled, with its whole process, log no traceback of its own end."""

    async def pass_on(message: Message) -> None:
        if message["type"] == "lifespan.shutdown.failed" and is_being_cancelled():
            message = {**message, "message": ""}
        await send(message)

    return pass_on
