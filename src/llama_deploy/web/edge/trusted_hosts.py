"""The layer that refuses requests for hosts that this server does not serve.

It prevents DNS rebinding: a web page whose own name resolves to this server's address would otherwise be of
the same origin as the server. Starlette's `TrustedHostMiddleware` cannot be used: it knows no IPv6 addresses,
trusts no IP address unless it is listed, accepts a repeated `Host`, and answers with plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.errors import InvalidHostError, LlamaDeployError, UntrustedHostError
from llama_deploy.web.edge.authorities import parse_authority, parse_host_name
from llama_deploy.web.edge.probes import is_probe
from llama_deploy.web.responses import problem_response

_MAX_CACHED_HOSTS: Final = 256


class TrustedHosts:
    """Answers 421 to a request for an untrusted host, and 400 to one whose `Host` is malformed.

    Trusted are IP addresses, `localhost`, the names below `localhost`, and `names`.

    Args:
        app: The next layer.
        names: Host names; `*.example.com` is every name below `example.com`, `*` every name.
        setting: The setting that adds a name, for the error.
        probes: Answers probes of health for untrusted hosts. None: they are refused too.
    """

    def __init__(
        self, app: ASGIApp, *, names: Iterable[str], setting: str, probes: ASGIApp | None = None
    ) -> None:
        self._app = app
        self._setting = setting
        self._probes = probes
        self._trusts_all = False
        self._names = {"localhost"}
        self._suffixes: tuple[str, ...] = (".localhost",)
        for name in names:
            if name == "*":
                self._trusts_all = True
            elif name.startswith("*."):
                self._suffixes += (name[1:],)
            elif (known := parse_host_name(name)) is not None:
                self._names.add(known)
        # Few hosts are seen, in every request.
        self._judge = lru_cache(maxsize=_MAX_CACHED_HOSTS)(self._find_error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        error = self._check([value for name, value in scope["headers"] if name == b"host"], scope)
        if error is None:
            await self._app(scope, receive, send)
        elif self._probes is not None and isinstance(error, UntrustedHostError) and is_probe(scope):
            await self._probes(scope, receive, send)
        else:
            await problem_response(error)(scope, receive, send)

    def _check(self, hosts: Sequence[bytes], scope: Scope) -> LlamaDeployError | None:
        if len(hosts) == 1:
            return self._judge(hosts[0])
        if not hosts and scope.get("http_version") == "1.0":
            return None  # HTTP/1.0 has no Host, as in probes of some load balancers; browsers do not speak it
        return InvalidHostError(
            f"the request has {len(hosts)} Host headers and must have one; send the host of the URL"
        )

    def _find_error(self, value: bytes) -> LlamaDeployError | None:
        authority = parse_authority(value)
        if authority is None:
            return InvalidHostError(f"the Host header {value[:100]!r} is not a host with an optional port")
        host = authority.host
        if (
            self._trusts_all
            or host in self._names
            or host.endswith(self._suffixes)
            or authority.is_ip_address
        ):
            return None
        return UntrustedHostError(
            f"this server is not configured to serve the host {host!r}; to allow it, add the name to"
            f" {self._setting}",
            host=host,
        )
