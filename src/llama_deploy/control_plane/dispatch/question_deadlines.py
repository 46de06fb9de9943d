"""Closing questions whose deadline has passed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llama_deploy.control_plane.decisions import question_rules
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores.question_records import QuestionHead
from llama_deploy.types.questions import Answer, QuestionState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QuestionDeadlines:
    """Answers questions with their defaults, or fails their tasks."""

    writer: Writer

    async def expire(self, due: Sequence[QuestionHead]) -> None:
        """Close questions whose deadline has passed."""
        outcomes = await self.writer.write_all([_command(question) for question in due])
        for question, outcome in zip(due, outcomes, strict=True):
            if isinstance(outcome, LlamaDeployError):
                logger.warning(
                    "question %s cannot expire now: %s",
                    question.question_id,
                    outcome,
                    extra={"action": "expire_failed", "task_id": question.task_id},
                )
            elif outcome:
                logger.info(
                    "question %s has expired; %s",
                    question.question_id,
                    "its task fails" if question.default_answer is None else "its default is the answer",
                    extra={"action": "question_expired", "task_id": question.task_id},
                )


def _command(known: QuestionHead) -> Command[bool]:
    task_id, question_id = known.task_id, known.question_id

    def run(unit: Unit) -> bool:
        task, question = unit.tasks.find(task_id), unit.questions.find(question_id)
        if task is None or question is None or question.state is not QuestionState.OPEN:
            return False  # another control plane decides on it, or it was answered just now
        if question.deadline is None or question.deadline > unit.now:
            return False
        if task.status.is_terminal:
            unit.questions.put(question_rules.closed(question, QuestionState.ENDED, at=unit.now))
            return False
        if question.default_answer is not None:
            answer = Answer(event=json.loads(question.default_answer))
            unit.add_to_inbox(task, question_rules.answer_event(question, answer))
        unit.questions.put(question_rules.closed(question, QuestionState.EXPIRED, at=unit.now))
        if question.default_answer is None:
            unit.apply(question_rules.expired(task, question, at=unit.now))
        return True

    ids = frozenset({task_id})
    reads = Reads(free_tasks=ids, ending_tasks=ids, inboxes=ids, questions=frozenset({question_id}))
    return Command(run, reads)
