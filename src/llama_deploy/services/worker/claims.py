"""Claiming the attempts that work messages offer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.errors import UnavailableError
from llama_deploy.retrying import retry
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.claimed_parts import complete
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types.instance_protocol import ClaimReply, ClaimRequest, TaskDispatch

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=1.0)
_PATIENCE_SECONDS: Final = 5.0
"""How long an unanswered claim is retried, well below the visibility timeout of any queue."""


class Claims:
    """Claims attempts for one instance.

    Args:
        instance_id: The instance.
        gateway: The connection to the control plane.
        ledger: Records granted attempts.
        new_attempt: Creates the attempt of a granted claim.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        gateway: ControlPlaneGateway,
        ledger: Ledger,
        new_attempt: Callable[[TaskDispatch, ClaimReply], Attempt],
    ) -> None:
        self._instance_id = instance_id
        self._gateway = gateway
        self._ledger = ledger
        self._new_attempt = new_attempt

    async def claim(self, dispatch: TaskDispatch) -> Attempt | None:
        """Claim an attempt, retrying for some seconds. Return None if it belongs to another instance.

        Returning the message to the queue each time would count as a delivery and delay it more and more.
        Keeping it longer would withhold it from instances that may reach another control plane.

        Raises:
            UnavailableError: The control plane does not answer, or may grant the claim later.
        """
        give_up_at = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        return await retry(partial(self._ask, dispatch), backoff=_BACKOFF, give_up_at=give_up_at)

    async def _ask(self, dispatch: TaskDispatch) -> Attempt | None:
        place = (dispatch.task_id, dispatch.attempt)
        if self._ledger.knows(*place):
            return None  # a duplicate message: this instance holds the attempt
        claim = ClaimRequest(
            task_id=dispatch.task_id, attempt=dispatch.attempt, instance_id=self._instance_id
        )
        with self._ledger.claiming(*place):
            reply = await self._gateway.claim(claim)
            if reply.granted and not self._ledger.hold(*place):
                # This process was paused, and a heartbeat has told that the attempt is lost.
                return None
        if not reply.granted and reply.retriable:
            raise UnavailableError(reply.reason)
        if not reply.granted:
            logger.debug("attempt %d of task %s: %s", dispatch.attempt, dispatch.task_id, reply.reason)
            return None
        return await self._granted(dispatch, claim, reply)

    async def _granted(
        self, dispatch: TaskDispatch, claim: ClaimRequest, reply: ClaimReply
    ) -> Attempt | None:
        """Return the attempt with all its parts, or None if it was released or lost meanwhile."""
        attempt = None
        try:
            whole = await complete(self._gateway, claim, reply)
            if whole is not None and self._ledger.knows(claim.task_id, claim.attempt):
                attempt = self._new_attempt(dispatch, whole)
        finally:
            if attempt is None:
                # A heartbeat that does not list an attempt tells the control plane to dispatch the next one.
                self._ledger.drop(claim.task_id, claim.attempt)
        return attempt
