"""Claims for services that process messages themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_deploy.message_queues.base import Consumer
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.worker.claimed_parts import complete
from llama_deploy.types.instance_protocol import ClaimRequest, TaskDispatch


class ClaimingConsumer:
    """Hands `new_task` messages to a consumer after claiming their attempts. Other messages pass unchanged.

    The consumer sees the message's data with `input`, the run arguments as JSON text, and `token`, which its
    reports of the attempt carry. An attempt that another instance has is dropped.

    Args:
        inner: Processes the messages.
        instance_id: For whom to claim.
        gateway: Returns the way to the control plane.
    """

    def __init__(
        self, inner: Consumer, *, instance_id: str, gateway: Callable[[], ControlPlaneGateway]
    ) -> None:
        self.id_ = inner.id_
        self._inner = inner
        self._instance_id = instance_id
        self._gateway = gateway

    async def process_message(self, message: QueueMessage) -> Any:
        """Claim, and process what was granted.

        Raises:
            UnavailableError: The control plane does not answer, or may grant the claim later.
        """
        if message.action is not ActionTypes.NEW_TASK:
            return await self._inner.process_message(message)
        gateway, dispatch = self._gateway(), TaskDispatch.model_validate(message.data)
        claim = ClaimRequest(
            task_id=dispatch.task_id, attempt=dispatch.attempt, instance_id=self._instance_id
        )
        whole = await complete(gateway, claim, await gateway.claim(claim))
        if whole is None:
            return None
        data = {**message.data, "input": whole.input, "token": whole.token}
        return await self._inner.process_message(message.model_copy(update={"data": data}))
