"""The inboxes of one transaction: events that were sent to tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from llama_deploy.control_plane.decisions.size_limits import SizeLimits
from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.control_plane.storage.task_rows import TaskRows
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import InboxRecord, TaskRecord
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import InboxEntry
from llama_deploy.types.json_values import utf8_bytes


class InboxRows:
    """Inbox entries: changes are gathered, and written by `flush`."""

    def __init__(self, tx: StoreTransaction, scope: Scope, tasks: TaskRows, limits: SizeLimits) -> None:
        self._tx = tx
        self._scope = scope
        self._tasks = tasks
        self._limits = limits
        self._new: list[InboxRecord] = []
        self._keys: set[tuple[str, str]] = set()
        self._sizes: dict[str, int] = {}
        """How many bytes the entries of a task take. Those that this transaction consumes are counted too."""
        self._consumed: set[tuple[str, int]] = set()
        self._restored: set[str] = set()

    def load_keys(self, keys: Collection[tuple[str, str]]) -> None:
        """Read which of the pairs (task id, idempotency key) exist."""
        receivers = {
            task.task_id for task in self._tasks.loaded({key[0] for key in keys}) if task.inbox_length
        }
        if possible := {key for key in keys if key[0] in receivers}:
            self._keys = self._tx.inbox.known_keys(possible)

    def load_sizes(self, task_ids: Collection[str]) -> None:
        """Read how large the inboxes of tasks are."""
        if receivers := [task.task_id for task in self._tasks.loaded(task_ids) if task.inbox_length]:
            self._sizes = self._tx.inbox.sizes(receivers)

    def size_of(self, task_id: str) -> int:
        """Return how many bytes the entries of a task take that are not consumed."""
        self._scope.require(RowKind.INBOX, task_id)
        return self._sizes.get(task_id, 0)

    def unconsumed(self, task_ids: Iterable[str]) -> list[InboxEntry]:
        """Return the entries of tasks that are not consumed, ordered by task and sequence number."""
        wanted = {task.task_id for task in map(self._tasks.get, task_ids) if task.inbox_length}
        if not wanted:
            return []
        stored = [*self._tx.inbox.load(wanted), *(entry for entry in self._new if entry.task_id in wanted)]
        return [
            InboxEntry(
                task_id=entry.task_id, seq=entry.seq, event=EventDefinition.model_validate_json(entry.event)
            )
            for entry in sorted(stored, key=lambda entry: (entry.task_id, entry.seq))
            if (entry.task_id, entry.seq) not in self._consumed
        ]

    def was_sent(self, task_id: str, event: EventDefinition) -> bool:
        """Whether the task's inbox has, or had, an event with the same idempotency key."""
        if event.idempotency_key is None:
            return False
        key = (task_id, event.idempotency_key)
        self._scope.require(RowKind.INBOX_KEY, key)
        return key in self._keys

    def add(self, task: TaskRecord, event: EventDefinition) -> InboxEntry:
        """Store an event as the last one of a task's inbox, whose length already counts it.

        Raises:
            PayloadTooLargeError: The event is too large.
            OverloadedError: The inbox is too large.
        """
        self._scope.require(RowKind.INBOX, task.task_id)
        text = event.model_dump_json()
        size, held = utf8_bytes(text), self._sizes.get(task.task_id, 0)
        self._limits.check_inbox(task.task_id, held=held, added=size)
        self._sizes[task.task_id] = held + size
        entry = InboxEntry(task_id=task.task_id, seq=task.inbox_length, event=event)
        key = event.idempotency_key
        self._new.append(InboxRecord(task.task_id, entry.seq, text, key))
        if key is not None:
            self._keys.add((task.task_id, key))
        return entry

    def consume(self, task: TaskRecord, numbers: Iterable[int]) -> None:
        """Mark entries of a task as consumed. Numbers that do not exist are ignored."""
        self._consumed.update((task.task_id, seq) for seq in numbers if 0 < seq <= task.inbox_length)

    def restore(self, task: TaskRecord) -> None:
        """Mark the entries of a task as not consumed."""
        self._consumed = {entry for entry in self._consumed if entry[0] != task.task_id}
        if task.inbox_length:
            self._restored.add(task.task_id)

    def copy(self, source_id: str, target_id: str) -> None:
        """Copy all entries of an ended task for a new one, consumed ones too."""
        self.flush()
        self._tx.inbox.copy({source_id: target_id})

    def drop(self, task_ids: Collection[str]) -> None:
        """Forget the entries of tasks that are being deleted."""
        self._new = [entry for entry in self._new if entry.task_id not in task_ids]
        self._consumed = {entry for entry in self._consumed if entry[0] not in task_ids}

    def flush(self) -> None:
        """Write all changes."""
        if self._new:
            self._tx.inbox.insert(self._new)
        if self._restored:
            self._tx.inbox.restore(self._restored)
        if self._consumed:
            self._tx.inbox.consume(self._consumed)
        self._new, self._restored, self._consumed = [], set(), set()
