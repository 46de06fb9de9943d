"""Gives attempts back to the control plane, so that other instances run them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from llama_deploy.errors import LlamaDeployError
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types.instance_protocol import ReleaseReply, ReleaseRequest

logger = logging.getLogger(__name__)

Release = Callable[[ReleaseRequest], Awaitable[ReleaseReply]]
"""Has the control plane release an attempt."""


async def hand_back(attempts: Sequence[Attempt], *, ledger: Ledger, send: Release) -> None:
    """Stop attempts and release them."""
    await asyncio.gather(*(attempt.write_snapshot() for attempt in attempts))
    for attempt in attempts:
        _log_restart(attempt)
        attempt.is_handed_back = True
        attempt.abandon()
        ledger.drop(attempt.key.task_id, attempt.key.attempt)
    keys = [attempt.key for attempt in attempts]
    requests = [ReleaseRequest(task_id=key.task_id, attempt=key.attempt, token=key.token) for key in keys]
    await asyncio.gather(*(release(request, send=send) for request in requests))


def _log_restart(attempt: Attempt) -> None:
    """Say that a run starts again elsewhere, of which nothing is stored."""
    if attempt.restart_reason is not None:
        logger.warning(
            "task %s starts from its beginning on another instance: %s",
            attempt.key.task_id,
            attempt.restart_reason,
            extra={"action": "restart", "task_id": attempt.key.task_id},
        )


async def release(request: ReleaseRequest, *, send: Release) -> None:
    """Release an attempt. A failure is logged: the task moves on when the lease ends."""
    extra = {"action": "release", "task_id": request.task_id}
    try:
        reply = await send(request)
    except LlamaDeployError as exc:
        logger.warning(
            "could not release task %s, which moves on when the lease ends: %s",
            request.task_id,
            exc,
            extra=extra,
        )
    else:
        logger.info("released task %s: %s", request.task_id, reply.outcome, extra=extra)
