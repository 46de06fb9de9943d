"""Sessions and their state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from llama_deploy.control_plane.storage.owned_rows import check_session
from llama_deploy.control_plane.storage.pages import session_page, task_page
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import (
    InvalidRequestError,
    SessionNotFoundError,
    StateConflictError,
)
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import NO_STATE, NO_TAGS, SessionRecord, TaskRecord
from llama_deploy.types import SessionDefinition, SessionOptions, SessionPolicy, SessionState, generate_id
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.keys import public_id, tenant_of
from llama_deploy.types.owners import THE_DEFAULT_TENANT, Owner
from llama_deploy.types.state_keys import state_of_workflows

RESERVED_PREFIX: Final = "__"
"""State keys with this prefix belong to the services. Clients neither see nor write them."""

_ANYWHERE: Final = frozenset({SessionPolicy.REJECT, SessionPolicy.INTERRUPT})
"""Policies that a task may ask for in any session."""


def new_session(
    session_id: str,
    *,
    policy: SessionPolicy,
    at: datetime,
    tags: Sequence[str] = (),
    subject: str | None = None,
) -> SessionRecord:
    """Return a new session with an empty state, in the tenant of its key."""
    return SessionRecord(
        session_id=session_id,
        policy=policy,
        state=NO_STATE,
        version=0,
        created_at=at,
        updated_at=at,
        tenant=tenant_of(session_id),
        tags=encode_json(list(tags)) if tags else NO_TAGS,
        subject=subject,
    )


def policy_of_call(asked: SessionPolicy | None, session: SessionRecord) -> SessionPolicy:
    """Return the policy by which a task that asks for one is admitted to a session.

    Raises:
        InvalidRequestError: The task asks for a policy that this session cannot have: the state of a workflow
            is stored in another way if tasks overlap, and turns go by age.
    """
    if asked is None or asked in _ANYWHERE or asked is session.policy:
        return asked or session.policy
    raise InvalidRequestError(
        f"a task cannot have the policy {asked.value!r} in session {public_id(session.session_id)}, whose"
        f" policy is {session.policy.value!r}; ask for 'reject' or 'interrupt', or create a session with the"
        f" policy {asked.value!r}"
    )


class Sessions:
    """Creates, lists and deletes sessions, and keeps their state."""

    def __init__(self, *, store: StateStore, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    async def create(
        self, options: SessionOptions, *, owner: Owner = THE_DEFAULT_TENANT, by: Actor | None = None
    ) -> str:
        """Create a session and return its key. If it exists, the existing session stays as it is.

        Raises:
            SessionNotFoundError: It belongs to another subject.
        """
        session_id = options.session_id or owner.key_of(generate_id())

        def run(unit: Unit) -> str:
            known = unit.sessions.find(session_id)
            if known is not None:
                check_session(session_id, known.subject, owner.subject)
                return session_id
            new = new_session(
                session_id, policy=options.policy, at=unit.now, tags=options.tags, subject=owner.subject
            )
            unit.add_session(new)
            unit.audit.note(AuditAction.SESSION_CREATE, session_id)
            return session_id

        return await self._writer.write(Command(run, Reads(sessions={session_id}), by))

    async def delete(
        self, session_id: str, *, cancel: bool, subject: str | None = None, by: Actor | None = None
    ) -> None:
        """Delete a session with its tasks. With `cancel`, running attempts are stopped.

        Raises:
            SessionNotFoundError: The session does not exist, or belongs to another subject than the caller's.
            SessionBusyError: It has open tasks and `cancel` is False.
        """

        def run(unit: Unit) -> None:
            check_session(session_id, unit.sessions.get(session_id).subject, subject)
            tasks = unit.delete_session(session_id, cancel=cancel)
            unit.audit.note(AuditAction.SESSION_DELETE, session_id, tasks=tasks)

        await self._writer.write(Command(run, Reads(sessions={session_id}), by))

    async def get(self, session_id: str) -> SessionDefinition:
        """Return a session.

        Raises:
            SessionNotFoundError: The session does not exist.
        """

        def read(tx: StoreTransaction) -> SessionDefinition:
            session = _load(tx, session_id)
            return _definition(session, tx.tasks.ids_of_sessions([session_id]))

        return await self._store.read(read)

    async def all(self, owner: Owner, *, after: str = "", limit: int = 1000) -> dict[str, SessionDefinition]:
        """Return the sessions of an owner whose keys follow `after`, by id and in the order of their keys.

        There are fewer than `limit` if they are large. None are returned only if none follow.
        """
        page = await self._store.read(partial(session_page, owner=owner, after=after, limit=limit))
        return {
            public_id(session.session_id): _definition(session, {session.session_id: task_ids})
            for session, task_ids in page
        }

    async def tasks(self, session_id: str, *, after: str = "", limit: int = 1000) -> list[TaskRecord]:
        """Return the tasks of a session in the order in which they were accepted, from the one after `after`.

        There are fewer than `limit` if they are large. None are returned only if none follow.

        Raises:
            SessionNotFoundError: The session does not exist.
            TaskNotFoundError: The session does not have the task `after`.
        """
        return await self._store.read(partial(task_page, session_id=session_id, after=after, limit=limit))

    async def last_task(self, session_id: str) -> TaskRecord | None:
        """Return the task of a session that was accepted last, None if it has none.

        Raises:
            SessionNotFoundError: The session does not exist.
        """

        def read(tx: StoreTransaction) -> TaskRecord | None:
            _load(tx, session_id, lean=True)
            last = tx.tasks.ids_of_sessions([session_id]).get(session_id, ())[-1:]
            return next(iter(tx.tasks.load(last).values()), None)

        return await self._store.read(read)

    async def state(self, session_id: str) -> SessionState:
        """Return a session's state without the keys of the services.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return _state(await self._store.read(lambda tx: _load(tx, session_id)))

    async def workflow_state(self, session_id: str) -> dict[str, Any]:
        """Return what workflows keep in `ctx.store`, by the class of the state.

        The values are JSON as the services have stored it. Signatures are not checked, and not returned.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        session = await self._store.read(lambda tx: _load(tx, session_id))
        return state_of_workflows(json.loads(text_of(session.state)))

    async def merge_state(
        self,
        session_id: str,
        changes: dict[str, Any],
        *,
        version: int | None = None,
        by: Actor | None = None,
    ) -> SessionState:
        """Overwrite the keys of `changes` in a session's state, and keep the others.

        With a `version`, only if the state still has it.

        Raises:
            SessionNotFoundError: The session does not exist.
            StateConflictError: The state has another version.
            InvalidRequestError: A key has the reserved prefix.
            SerializationError: A value that cannot be encoded as JSON.
            PayloadTooLargeError: The state becomes too large.
        """
        check_state(changes)

        def run(unit: Unit) -> SessionRecord:
            if version is not None:
                _check_version(unit.sessions.get(session_id), version)
            return unit.sessions.merge_state(session_id, changes)

        return await self._write(session_id, run, by)

    async def replace_state(
        self, session_id: str, state: dict[str, Any], *, version: int, by: Actor | None = None
    ) -> SessionState:
        """Replace a session's state, except for the reserved keys, if it still has the version that was read.

        Raises:
            SessionNotFoundError: The session does not exist.
            StateConflictError: The state has another version.
            InvalidRequestError: A key has the reserved prefix.
            SerializationError: A value that cannot be encoded as JSON.
            PayloadTooLargeError: The state becomes too large.
        """
        check_state(state)

        def run(unit: Unit) -> SessionRecord:
            session = unit.sessions.whole(unit.sessions.get(session_id))
            _check_version(session, version)
            held = json.loads(text_of(session.state))
            kept = {key: value for key, value in held.items() if _is_reserved(key)}
            return unit.sessions.put_state(session, {**kept, **state})

        return await self._write(session_id, run, by)

    async def _write(
        self, session_id: str, run: Callable[[Unit], SessionRecord], by: Actor | None
    ) -> SessionState:
        def run_and_note(unit: Unit) -> SessionRecord:
            session = run(unit)
            unit.audit.note(AuditAction.SESSION_STATE, session_id)
            return session

        return _state(await self._writer.write(Command(run_and_note, Reads(sessions={session_id}), by)))


def visible(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state without the keys of the services."""
    return {key: value for key, value in state.items() if not _is_reserved(key)}


def _is_reserved(key: str) -> bool:
    return key.startswith(RESERVED_PREFIX)


def check_state(state: dict[str, Any]) -> None:
    """Raise an error unless a client may write this state.

    Raises:
        InvalidRequestError: A key has the reserved prefix.
        SerializationError: A value cannot be encoded as JSON.
    """
    if taken := [key for key in state if _is_reserved(key)]:
        raise InvalidRequestError(
            f"state keys with the prefix {RESERVED_PREFIX!r} are reserved for services: {taken}; rename them"
        )
    encode_json(state)


def _check_version(session: SessionRecord, version: int) -> None:
    if session.version != version:
        raise StateConflictError(
            f"the state of session {public_id(session.session_id)} has version {session.version}, not"
            f" {version}; read it again",
            expected=version,
            actual=session.version,
        )


def _load(tx: StoreTransaction, session_id: str, *, lean: bool = False) -> SessionRecord:
    session = tx.sessions.load([session_id], lean=lean).get(session_id)
    if session is None:
        shown = public_id(session_id)
        raise SessionNotFoundError(f"there is no session {shown}", session_id=shown)
    return session


def _state(session: SessionRecord) -> SessionState:
    return SessionState(state=visible(json.loads(text_of(session.state))), version=session.version)


def _definition(session: SessionRecord, tasks: Mapping[str, list[str]]) -> SessionDefinition:
    return SessionDefinition(
        session_id=public_id(session.session_id),
        task_ids=[public_id(task_id) for task_id in tasks.get(session.session_id, ())],
        state=visible(json.loads(text_of(session.state))),
        policy=session.policy,
    )
