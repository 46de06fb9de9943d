"""Sessions that begin with the state of another one."""

from __future__ import annotations

from llama_deploy.control_plane.decisions.state_versions import KEPT_STATES, MAX_KEPT_CHARACTERS, state_at
from llama_deploy.control_plane.requests.sessions.session_lists import session_summary
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import ConflictError, StateNotKeptError, TaskNotFoundError
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import SessionHeadRecord, SessionRecord
from llama_deploy.types import SessionFork, SessionSummary, generate_id
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.keys import internal_key, public_id, tenant_of


class SessionForks:
    """Makes sessions from others."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def fork(self, session_id: str, fork: SessionFork, *, by: Actor | None = None) -> SessionSummary:
        """Create a session with the state that another one had when a task of it had ended.

        It has no tasks; the history of the other one stays there. Asking again with the same new id returns
        the same session.

        Raises:
            SessionNotFoundError: The session does not exist.
            TaskNotFoundError: It has no such task.
            ConflictError: The task has not ended, or another session has the new id.
            StateNotKeptError: The state of that time was not kept.
        """
        new_id = fork.session_id or internal_key(tenant_of(session_id), generate_id())
        task_id = fork.task_id

        def run(unit: Unit) -> SessionRecord:
            known = unit.sessions.find(new_id)
            if known is not None:
                if (known.forked_from, known.forked_at) == (session_id, task_id):
                    return known
                raise ConflictError(
                    f"session {public_id(new_id)} exists and is not this fork; choose another session_id"
                )
            source = unit.sessions.whole(unit.sessions.get(session_id))
            new = SessionRecord(
                session_id=new_id,
                policy=fork.policy or source.policy,
                state=_state(unit, source, task_id),
                version=0,
                created_at=unit.now,
                updated_at=unit.now,
                tenant=source.tenant,
                subject=source.subject,
                tags=source.tags if fork.tags is None else encode_json(fork.tags),
                forked_from=session_id,
                forked_at=task_id,
                origin=source.origin or session_id,
            )
            unit.add_session(new)
            at = None if task_id is None else public_id(task_id)
            unit.audit.note(AuditAction.SESSION_FORK, session_id, new_session=public_id(new_id), task=at)
            return new

        reads = Reads(sessions={session_id, new_id}, tasks=set() if task_id is None else {task_id})
        made = await self._writer.write(Command(run, reads, by))
        return session_summary(
            SessionHeadRecord(*(getattr(made, name) for name in SessionHeadRecord._fields))
        )


def _state(unit: Unit, session: SessionRecord, task_id: str | None) -> str:
    """Return the state of a session when a task had ended. None as `task_id`: its present state."""
    if task_id is None:
        return text_of(session.state)
    task = unit.tasks.find(task_id)
    if task is None or task.session_id != session.session_id:
        raise TaskNotFoundError(
            f"session {public_id(session.session_id)} has no task {public_id(task_id)}",
            task_id=public_id(task_id),
        )
    if task.finished_at is None:
        raise ConflictError(
            f"task {public_id(task_id)} is {task.status.value}; a session can be forked after a task that has"
            " ended"
        )
    state = state_at(task.finished_at, session, unit.sessions.saved_states(session.session_id))
    if state is None:
        raise StateNotKeptError(
            f"the state that session {public_id(session.session_id)} had after task {public_id(task_id)} was"
            f" not kept: of each session, the last {KEPT_STATES} states are, if they have at most"
            f" {MAX_KEPT_CHARACTERS} characters; fork it after a later task"
        )
    return state
