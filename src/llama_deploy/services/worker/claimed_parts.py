"""Fetching what was too large for the answer to a claim."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import retry
from llama_deploy.errors import (
    ClosedError,
    ConflictError,
    InvalidRequestError,
    LlamaDeployError,
    ProtocolVersionError,
    TaskNotFoundError,
    UnavailableError,
)
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.worker.hand_back import release
from llama_deploy.types.instance_protocol import (
    AttemptPart,
    ClaimReply,
    ClaimRequest,
    PartRequest,
    ReleaseRequest,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF: Final = Backoff(first=0.1, longest=1.0)
_PATIENCE_SECONDS: Final = 5.0
"""How long an error that somebody must correct is retried, such as a wrong certificate."""
_UNKNOWN_PART_SECONDS: Final = 1.0
"""Pause before an attempt with an unknown part is released, since this instance may get the next one too."""


async def complete(gateway: ControlPlaneGateway, claim: ClaimRequest, reply: ClaimReply) -> ClaimReply | None:
    """Return the answer to a claim with the parts that it omits. None: the claim was rejected.

    Retries while the control plane does not answer: the heartbeats hold the lease meanwhile. If the parts
    cannot be fetched, releases the attempt, which does not count as a loss, and returns None. Also returns
    None if the attempt does not belong to this instance any more.

    Raises:
        UnavailableError: The claim was rejected, but may be granted later.
    """
    if not reply.granted and reply.retriable:
        raise UnavailableError(reply.reason)
    if not reply.granted:
        logger.debug("attempt %d of task %s: %s", claim.attempt, claim.task_id, reply.reason)
        return None
    try:
        return await _with_parts(gateway, claim, reply)
    except LlamaDeployError as exc:
        logger.warning(
            "attempt %d of task %s cannot start here: %s",
            claim.attempt,
            claim.task_id,
            exc,
            extra={"action": "claim_incomplete", "task_id": claim.task_id},
        )
        if not isinstance(exc, ConflictError | TaskNotFoundError):
            request = ReleaseRequest(task_id=claim.task_id, attempt=claim.attempt, token=reply.token)
            await release(request, send=lambda request: _persistently(partial(gateway.release, request)))
        return None


async def _with_parts(gateway: ControlPlaneGateway, claim: ClaimRequest, reply: ClaimReply) -> ClaimReply:
    if not reply.omitted:
        return reply
    unknown = sorted(set(reply.omitted) - set(AttemptPart))
    if unknown:
        await asyncio.sleep(_UNKNOWN_PART_SECONDS)
        raise ProtocolVersionError(
            f"the control plane requires the part {', '.join(unknown)!r}, which this release does not know;"
            " upgrade this instance to the release of the control plane"
        )
    omitted = [part for part in AttemptPart if part in reply.omitted]
    parts = {part.value: await _fetch(gateway, claim, reply.token, part) for part in omitted}
    return ClaimReply.model_validate({**dict(reply), **parts})


async def _fetch(gateway: ControlPlaneGateway, claim: ClaimRequest, token: str, part: AttemptPart) -> Any:
    """Return the value of a part, which comes in slices of its JSON text."""
    text, digest = "", None
    while True:
        request = PartRequest(
            task_id=claim.task_id,
            attempt=claim.attempt,
            token=token,
            part=part,
            offset=len(text),
            digest=digest,
        )
        reply = await _persistently(partial(gateway.part, request))
        text = text + reply.text if reply.digest == digest else reply.text
        digest = reply.digest
        if len(text) >= reply.size:
            # The input travels as text: the control plane does not look into it.
            return text if part is AttemptPart.INPUT else json.loads(text)


async def _persistently(call: Callable[[], Awaitable[T]]) -> T:
    """Retry while the control plane does not answer, and for some seconds if it answers with other errors."""
    return await retry(
        partial(retry, call, backoff=_BACKOFF),
        backoff=_BACKOFF,
        retry_on=_is_transient,
        give_up_at=asyncio.get_running_loop().time() + _PATIENCE_SECONDS,
    )


def _is_transient(error: LlamaDeployError) -> bool:
    return not isinstance(error, ConflictError | TaskNotFoundError | InvalidRequestError | ClosedError)
