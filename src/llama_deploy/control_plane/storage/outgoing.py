"""The messages that a transaction stores in the outbox, to be published after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pydantic import BaseModel

from llama_deploy.control_plane.decisions.deaths import is_suspect
from llama_deploy.control_plane.decisions.destinations import Destination
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import OutboxRecord, TaskRecord
from llama_deploy.trace_context import TRACE_HEADER
from llama_deploy.types.instance_protocol import TaskDispatch
from llama_deploy.types.topics import CONTROL_PLANE, Topics


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message of the outbox, and its topic."""

    topic: str
    message: QueueMessage
    size: int
    """How many bytes the message has in its wire form."""

    @classmethod
    def of(cls, topic: str, message: QueueMessage) -> Self:
        """Return a message that is not stored."""
        return cls(topic, message, len(message.encode()))


def attempts_topic(task: TaskRecord, topics: Topics) -> str:
    """Return where the attempts of a task are published: suspects have a topic of their own."""
    return topics.suspects(task.target) if is_suspect(task) else topics.work(task.target)


class OutgoingMessages:
    """Gathers messages, and stores them with `flush`."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._messages: list[Outgoing] = []
        self._texts: list[str] = []
        """Their wire forms."""

    @property
    def messages(self) -> Sequence[Outgoing]:
        """The messages so far."""
        return self._messages

    def dispatch(self, task: TaskRecord, destination: Destination) -> None:
        """Send the task's attempt to an instance of its service, or to all of them."""
        if destination.is_nowhere:
            return
        dispatch = TaskDispatch(
            task_id=task.task_id,
            session_id=task.session_id,
            agent_id=task.target,
            attempt=task.attempt,
        )
        topic = attempts_topic(task, self._topics)
        if destination.instance_id is not None:
            topic = self._topics.instance(task.target, destination.instance_id)
        self._send(task, topic, ActionTypes.NEW_TASK, dispatch)

    def publish(self, message: QueueMessage) -> None:
        """Send a message to the topic of its type."""
        self._add(self._topics.work(message.type), message)

    def tell_instance(self, task: TaskRecord, action: ActionTypes, data: BaseModel) -> None:
        """Send a message to the instance that runs the task, if there is one."""
        if task.instance_id is not None:
            self._send(task, self._topics.instance(task.target, task.instance_id), action, data)

    def flush(self, tx: StoreTransaction, *, relay_at: datetime) -> None:
        """Store the messages. Other control planes may publish them from `relay_at` on."""
        if self._messages:
            tx.outbox.insert(
                [
                    OutboxRecord(item.message.id_, item.topic, text, relay_at)
                    for item, text in zip(self._messages, self._texts, strict=True)
                ]
            )

    def _send(self, task: TaskRecord, topic: str, action: ActionTypes, data: BaseModel) -> None:
        message = QueueMessage(
            publisher_id=CONTROL_PLANE,
            action=action,
            data=data.model_dump(mode="json"),
            type=task.target,
            headers={} if task.trace is None else {TRACE_HEADER: task.trace},
        )
        self._add(topic, message)

    def _add(self, topic: str, message: QueueMessage) -> None:
        body = message.encode()
        self._messages.append(Outgoing(topic, message, len(body)))
        self._texts.append(body.decode())
