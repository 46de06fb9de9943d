"""Gives attempts back to the control plane, so that other instances run them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types.instance_protocol import ReleaseRequest

logger = logging.getLogger(__name__)


async def hand_back(attempts: Sequence[Attempt], *, ledger: Ledger, gateway: ControlPlaneGateway) -> None:
    """Stop attempts and release them. A failed release is logged: that task moves on when the lease ends."""
    await asyncio.gather(*(attempt.write_snapshot() for attempt in attempts))
    for attempt in attempts:
        attempt.abandon()
        ledger.drop(attempt.key.task_id, attempt.key.attempt)
    requests = [
        ReleaseRequest(task_id=item.key.task_id, attempt=item.key.attempt, token=item.key.token)
        for item in attempts
    ]
    answers = await asyncio.gather(
        *(gateway.release(request) for request in requests), return_exceptions=True
    )
    for request, answer in zip(requests, answers, strict=True):
        extra = {"action": "hand_back", "task_id": request.task_id}
        if isinstance(answer, BaseException):
            logger.warning(
                "could not hand back task %s, which moves on when the lease ends: %s",
                request.task_id,
                answer,
                extra=extra,
            )
        else:
            logger.info("handed back task %s: %s", request.task_id, answer.outcome, extra=extra)
