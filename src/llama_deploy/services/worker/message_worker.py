"""The worker of a service that processes messages itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from llama_deploy.message_queues.base import AbstractMessageQueue, Consumer
from llama_deploy.messages import QueueMessage
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.event_shares import event_share
from llama_deploy.services.run.inbox.run_inbox import EntrySequence
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.worker.attempt import task_info
from llama_deploy.services.worker.message_attempt import MessageAttempt
from llama_deploy.services.worker.worker import Worker
from llama_deploy.services.worker.worker_settings import WorkerSettings
from llama_deploy.types.instance_protocol import ClaimReply, TaskDispatch


class MessageWorker(Worker[MessageAttempt]):
    """Hands the message of each task to a consumer, with the task's input.

    Args:
        consumer: Processes the messages.
        settings: See `WorkerSettings`.
        queue: See `Worker`.
        gateway: See `Worker`.
        publish: See `Worker`.
        register: See `Worker`.
    """

    def __init__(
        self,
        consumer: Consumer,
        settings: WorkerSettings,
        *,
        queue: AbstractMessageQueue,
        gateway: ControlPlaneGateway,
        publish: Callable[[QueueMessage], Awaitable[None]],
        register: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(
            settings, queue=queue, gateway=gateway, publish=publish, register=register, others=consumer
        )
        self._consumer = consumer
        self._publish = publish
        self._event_share = event_share(settings.max_concurrent_tasks)

    def new_attempt(self, message: QueueMessage, dispatch: TaskDispatch, reply: ClaimReply) -> MessageAttempt:
        """Return the attempt that a message offered, and that was claimed."""
        task_id, number = dispatch.task_id, dispatch.attempt
        key = AttemptKey(task_id, number, reply.token)
        reports = AttemptReports(key, self._publish, max_characters=self._event_share)
        attempt = MessageAttempt(
            key=key,
            task=task_info(dispatch, reply, tell=reports.progress.tell),
            reports=reports,
            message=message.model_copy(update={"data": {**message.data, "input": reply.input}}),
            process=self._consumer.process_message,
            on_seen=lambda seq: self.ledger.seen(task_id, number, inbox_seq=seq),
            headers=message.headers,
            sequence=EntrySequence(max([reply.inbox_seq, *(entry.seq for entry in reply.inbox)])),
        )
        attempt.begin_with(reply.inbox)
        return attempt

    async def execute(self, attempt: MessageAttempt) -> tuple[RunOutcome | None, dict[str, Any] | None]:
        """Let the service process the task."""
        return await attempt.execute(), None
