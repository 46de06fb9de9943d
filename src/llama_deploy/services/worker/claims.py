"""Claiming the attempts that work messages offer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import retry
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.worker.claimed_parts import complete
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types import Durability
from llama_deploy.types.instance_protocol import ClaimReply, ClaimRequest, TaskDispatch

A = TypeVar("A")

_BACKOFF: Final = Backoff(first=0.1, longest=1.0)
_PATIENCE_SECONDS: Final = 5.0
"""How long an unanswered claim is retried, well below the visibility timeout of any queue."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims attempts for one instance."""

    instance_id: str
    durability: Durability
    """That of runs whose values can be stored."""
    gateway: ControlPlaneGateway
    ledger: Ledger
    """Records granted attempts."""

    async def claim(self, dispatch: TaskDispatch, new_attempt: Callable[[ClaimReply], A]) -> A | None:
        """Claim an attempt, retrying for some seconds. Return None if it belongs to another instance.

        Returning the message to the queue each time would count as a delivery and delay it more and more.
        Keeping it longer would withhold it from instances that may reach another control plane.

        Args:
            dispatch: The attempt.
            new_attempt: Creates what is returned, from the answer to the granted claim.

        Raises:
            UnavailableError: The control plane does not answer, or may grant the claim later.
        """
        give_up_at = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        return await retry(partial(self._ask, dispatch, new_attempt), backoff=_BACKOFF, give_up_at=give_up_at)

    async def _ask(self, dispatch: TaskDispatch, new_attempt: Callable[[ClaimReply], A]) -> A | None:
        place = (dispatch.task_id, dispatch.attempt)
        if self.ledger.knows(*place):
            return None  # a duplicate message: this instance holds the attempt
        claim = ClaimRequest(
            task_id=dispatch.task_id,
            attempt=dispatch.attempt,
            instance_id=self.instance_id,
            durability=self.durability,
        )
        with self.ledger.claiming(*place):
            reply = await self.gateway.claim(claim)
            if reply.granted and not self.ledger.hold(*place):
                # This process was paused, and a heartbeat has told that the attempt is lost.
                return None
        attempt = None
        try:
            whole = await complete(self.gateway, claim, reply)
            if whole is not None and self.ledger.knows(*place):
                attempt = new_attempt(whole)
        finally:
            if attempt is None:
                # A heartbeat that does not list an attempt tells the control plane to dispatch the next one.
                self.ledger.drop(*place)
        return attempt
