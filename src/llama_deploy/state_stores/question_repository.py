"""What a state store does with questions. See `repositories` for what holds of all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from datetime import datetime

from llama_deploy.state_stores.question_records import CallbackRecord, QuestionHead, QuestionRecord
from llama_deploy.types.owners import Owner
from llama_deploy.types.questions import QuestionState


class QuestionRepository(ABC):
    """The questions of tasks, and the callbacks that answer them.

    They are deleted with their session. The lock of a task's session covers its questions.
    """

    @abstractmethod
    def load(self, question_ids: Collection[str]) -> dict[str, QuestionRecord]:
        """Return the questions by id."""

    @abstractmethod
    def heads(self, question_ids: Collection[str]) -> list[QuestionHead]:
        """Return what decisions read of questions."""

    @abstractmethod
    def open_heads(self, task_ids: Collection[str]) -> list[QuestionHead]:
        """Return what decisions read of the open questions of tasks, the oldest first."""

    @abstractmethod
    def open_ids(self, task_ids: Collection[str]) -> list[tuple[str, str]]:
        """Return the open questions of tasks as pairs of a task and a question."""

    @abstractmethod
    def of_task(
        self, task_id: str, *, limit: int = 200, max_bytes: int = 1024 * 1024
    ) -> list[QuestionRecord]:
        """Return the open questions of a task, the oldest first. The limits are those of `page`."""

    @abstractmethod
    def page(
        self,
        *,
        owner: Owner | None = None,
        service_name: str | None = None,
        assignee: str | None = None,
        tag: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int = 50,
        max_bytes: int = 1024 * 1024,
    ) -> list[QuestionRecord]:
        """Return open questions, the oldest first, then by id.

        Args:
            owner: To whom they belong; of a subject also those that are assigned to it. None: to anybody.
            service_name: Only those of this service.
            assignee: Only those assigned to this name.
            tag: Only those with this tag.
            after: `since` and id of the last question of the page before.
            limit: The most questions to return.
            max_bytes: How large prompts and schemas may be together. The first question is returned in any
                case.
        """

    @abstractmethod
    def due(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[QuestionHead]:
        """Return open questions with a `deadline`, by that.

        Args:
            due_before: Only those with an earlier deadline. None: all.
            limit: The most questions to return.
        """

    @abstractmethod
    def insert(self, questions: Sequence[QuestionRecord]) -> None:
        """Store questions. One that exists stays as it is, but is open again if it was withdrawn."""

    @abstractmethod
    def update(self, questions: Sequence[QuestionHead]) -> None:
        """Overwrite `state`, `closed_at`, `reason` and `answer_key`."""

    @abstractmethod
    def close(self, question_ids: Collection[str], state: QuestionState, *, at: datetime) -> None:
        """Give those of the questions that are open another state."""

    @abstractmethod
    def end(self, task_ids: Collection[str], *, at: datetime) -> None:
        """Close the open questions of tasks that have ended."""

    @abstractmethod
    def assign(self, question_id: str, assignee: str | None) -> None:
        """Overwrite the assignee of an open question."""

    @abstractmethod
    def put_callback(self, callback: CallbackRecord) -> None:
        """Store a callback."""

    @abstractmethod
    def find_callback(self, token_hash: str) -> CallbackRecord | None:
        """Return a callback. None: there is none with this token."""
