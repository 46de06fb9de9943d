"""Claims: a message that offers an attempt becomes an attempt in the hands of this instance."""

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
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types.instance_protocol import ClaimReply, ClaimRequest, TaskDispatch

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=1.0)
_PATIENCE_SECONDS: Final = 5.0
"""How long a claim that is not answered is made again, well below the visibility timeout of any queue."""


class Claims:
    """Asks the control plane for attempts.

    Args:
        instance_id: For whom.
        gateway: The way to the control plane.
        ledger: Notes what was granted.
        new_attempt: Returns the attempt of a granted claim.
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
        """Ask for an attempt, for some seconds again and again; None if it is not to be had.

        To give its message back each time would count, and it would come later each time. To keep it for
        longer would keep it from instances that may reach another control plane.

        Raises:
            UnavailableError: The control plane does not answer, or may grant it later.
        """
        give_up_at = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        return await retry(partial(self._ask, dispatch), backoff=_BACKOFF, give_up_at=give_up_at)

    async def _ask(self, dispatch: TaskDispatch) -> Attempt | None:
        place = (dispatch.task_id, dispatch.attempt)
        if self._ledger.knows(*place):
            return None  # a copy of the message: the attempt is claimed here, or has ended here
        with self._ledger.claiming(*place):
            reply = await self._gateway.claim(
                ClaimRequest(
                    task_id=dispatch.task_id, attempt=dispatch.attempt, instance_id=self._instance_id
                )
            )
            if reply.granted:
                self._ledger.hold(*place)
        if not reply.granted and reply.retriable:
            raise UnavailableError(reply.reason)
        if not reply.granted:
            logger.debug("attempt %d of task %s: %s", dispatch.attempt, dispatch.task_id, reply.reason)
            return None
        return self._new_attempt(dispatch, reply)
