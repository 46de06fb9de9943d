"""The questions of one transaction."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from llama_deploy.control_plane.decisions.question_rules import closed, question_of
from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.control_plane.storage.task_rows import TaskRows
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.question_records import CallbackRecord, QuestionHead, QuestionRecord
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types.questions import QuestionState, WaitReport


class QuestionRows:
    """Questions: changes are gathered, and written by `flush`."""

    def __init__(self, tx: StoreTransaction, scope: Scope, tasks: TaskRows, *, now: datetime) -> None:
        self._tx = tx
        self._scope = scope
        self._tasks = tasks
        self._now = now
        self._heads: dict[str, QuestionHead] = {}
        self._new: dict[str, QuestionRecord] = {}
        self._changed: set[str] = set()
        self._closed: dict[QuestionState, dict[str, None]] = {}
        self._ended: dict[str, None] = {}
        self._assigned: dict[str, str | None] = {}
        self.has_changed = False
        """Whether there is something to write."""
        self._callbacks: list[CallbackRecord] = []

    def load(self, question_ids: Collection[str]) -> None:
        """Read questions."""
        if question_ids:
            self._heads.update((each.question_id, each) for each in self._tx.questions.heads(question_ids))

    def load_open(self, task_ids: Collection[str]) -> None:
        """Read the open questions of tasks."""
        asking = [task.task_id for task in self._tasks.loaded(task_ids) if task.wait_reports is not None]
        if asking:
            found = self._tx.questions.open_heads(asking)
            self._heads.update((each.question_id, each) for each in found)

    def find(self, question_id: str) -> QuestionHead | None:
        """Return a question, None if it does not exist."""
        self._scope.require(RowKind.QUESTION, question_id)
        return self._heads.get(question_id)

    def open_of(self, task_id: str) -> list[QuestionHead]:
        """Return the open questions of a task, the oldest first."""
        self._scope.require(RowKind.OPEN_QUESTIONS, task_id)
        found = (each for each in self._heads.values() if each.task_id == task_id)
        return [each for each in found if each.state is QuestionState.OPEN]

    def open_ids(self, task: TaskRecord) -> list[str]:
        """Return the ids of the open questions of a task."""
        if task.wait_reports is None:
            return []
        self.flush()
        return [question_id for _, question_id in self._tx.questions.open_ids([task.task_id])]

    def put(self, question: QuestionHead) -> None:
        """Store a changed question."""
        self.has_changed = True
        self._heads[question.question_id] = question
        self._changed.add(question.question_id)

    def take(self, task: TaskRecord, report: WaitReport) -> datetime | None:
        """Store what a run asks, and does not ask any more.

        Returns:
            The first deadline of the new questions. None: they have none.
        """
        self.has_changed = True
        deadlines: list[datetime] = []
        for asked in report.asked:
            question = question_of(task, asked, at=self._now)
            self._new.setdefault(question.question_id, question)
            head = QuestionHead(*(getattr(question, name) for name in QuestionHead._fields))
            self._heads.setdefault(question.question_id, head)
            if question.deadline is not None:
                deadlines.append(question.deadline)
        answered = set(report.answered)
        for question_id in report.closed:
            state = QuestionState.ANSWERED if question_id in answered else QuestionState.WITHDRAWN
            self._close(question_id, state)
        for question_id in report.rejected:
            self._reopen(question_id)
        return min(deadlines, default=None)

    def assign(self, question_id: str, assignee: str | None) -> None:
        """Overwrite the assignee of a question."""
        self.has_changed = True
        self._assigned[question_id] = assignee

    def add_callback(self, callback: CallbackRecord) -> None:
        """Store a callback."""
        self.has_changed = True
        self._callbacks.append(callback)

    def end(self, task: TaskRecord) -> None:
        """The task has ended, and its questions end with it."""
        self.has_changed = True
        self._ended[task.task_id] = None

    def drop(self, task_ids: Collection[str]) -> None:
        """Forget the questions of tasks that are being deleted."""
        for task_id in task_ids:
            self._ended.pop(task_id, None)
        self._new = {name: each for name, each in self._new.items() if each.task_id not in task_ids}
        dropped = {name for name, each in self._heads.items() if each.task_id in task_ids}
        self._changed -= dropped
        for name in dropped:
            del self._heads[name]

    def flush(self) -> None:
        """Write all changes."""
        questions = self._tx.questions
        if self._new:
            questions.insert(list(self._new.values()))
        if self._changed:
            questions.update([self._heads[each] for each in self._changed])
        for state, ids in self._closed.items():
            questions.close(ids, state, at=self._now)
        if self._ended:
            questions.end(self._ended, at=self._now)
        for question_id, assignee in self._assigned.items():
            questions.assign(question_id, assignee)
        for callback in self._callbacks:
            questions.put_callback(callback)
        self._new, self._changed, self._closed, self._ended = {}, set(), {}, {}
        self._assigned, self._callbacks = {}, []

    def _close(self, question_id: str, state: QuestionState) -> None:
        head = self._heads.get(question_id)
        if head is not None and head.state is QuestionState.OPEN:
            self._heads[question_id] = closed(head, state, at=self._now)
        # Only an open one is closed, whatever was read of it.
        self._closed.setdefault(state, {})[question_id] = None

    def _reopen(self, question_id: str) -> None:
        """An answer was stored that the run could not read: the question is open again."""
        if question_id not in self._heads:
            self.load([question_id])
        head = self._heads.get(question_id)
        if head is not None and head.state is QuestionState.ANSWERED:
            self.put(head._replace(state=QuestionState.OPEN, closed_at=None, answer_key=None))
