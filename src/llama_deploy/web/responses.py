"""HTTP responses that routes, shortcuts and layers share."""

from __future__ import annotations

import json
import logging
import re
from typing import Final

from starlette.responses import Response

from llama_deploy.errors import InternalServerError, LlamaDeployError
from llama_deploy.web.problems import MEDIA_TYPE, headers_of, status_of, to_problem

logger = logging.getLogger(__name__)

_TOKEN: Final = re.compile(r"(?<=/callbacks/)[^/]+")


def json_response(content: bytes | str) -> Response:
    """Return a response with encoded JSON."""
    return Response(content, media_type="application/json")


def problem_response(error: LlamaDeployError) -> Response:
    """Return the problem details of `error`, whose tracebacks are dropped."""
    _drop_tracebacks(error)
    # The error may quote what a client sent, even text that is not valid Unicode.
    content = json.dumps(to_problem(error), ensure_ascii=False).encode(errors="replace")
    return Response(content, status_code=status_of(error), media_type=MEDIA_TYPE, headers=headers_of(error))


def _drop_tracebacks(error: LlamaDeployError) -> None:
    """Let go of the frames that an error has passed, which hold the body of the request.

    They often form a cycle with the future that the error came from, and would stay until Python looks for
    garbage, which it seldom does.
    """
    passed: BaseException | None = error
    while passed is not None and passed.__traceback__ is not None:
        passed.__traceback__ = None
        passed = passed.__cause__ or passed.__context__


def unexpected_response(method: str, path: str, error: Exception) -> Response:
    """Log an unexpected error, and return a response that does not show its text."""
    logger.error("%s %s failed", method, _shown_path(path), exc_info=error, extra={"action": "http_error"})
    return problem_response(InternalServerError(f"{type(error).__name__} in the server; see its log"))


def _shown_path(path: str) -> str:
    """Return a path without the token of a callback, which nobody may read in a log."""
    return _TOKEN.sub("...", path)
