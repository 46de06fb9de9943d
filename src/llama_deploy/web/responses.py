"""HTTP responses that routes, shortcuts and layers share."""

from __future__ import annotations

import json
import logging

from starlette.responses import Response

from llama_deploy.errors import InternalServerError, LlamaDeployError
from llama_deploy.web.problems import MEDIA_TYPE, headers_of, status_of, to_problem

logger = logging.getLogger(__name__)


def json_response(content: bytes | str) -> Response:
    """Return a response with encoded JSON."""
    return Response(content, media_type="application/json")


def problem_response(error: LlamaDeployError) -> Response:
    """Return the problem details of `error`."""
    # The error may quote what a client sent, even text that is not valid Unicode.
    content = json.dumps(to_problem(error), ensure_ascii=False).encode(errors="replace")
    return Response(content, status_code=status_of(error), media_type=MEDIA_TYPE, headers=headers_of(error))


def unexpected_response(method: str, path: str, error: Exception) -> Response:
    """Log an unexpected error, and return a response that does not show its text."""
    logger.error("%s %s failed", method, path, exc_info=error, extra={"action": "http_error"})
    return problem_response(InternalServerError(f"{type(error).__name__} in the server; see its log"))
