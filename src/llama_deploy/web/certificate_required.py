"""What a server answers on a connection without the client certificate that it requires.

The TLS handshake itself could refuse the client, but asyncio closes such a connection without saying why.
"""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from llama_deploy.errors import ClientCertificateError
from llama_deploy.web.responses import problem_response


async def certificate_required(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request, and close the connection."""
    response = problem_response(
        ClientCertificateError(
            "this server serves only clients that show a certificate, and this one has shown none; set"
            " LLAMA_DEPLOY_CLIENT_CERT and LLAMA_DEPLOY_CLIENT_KEY, or pass client_certificate"
        )
    )
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
