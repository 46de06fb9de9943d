"""Sessions and their state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import (
    InvalidRequestError,
    SessionNotFoundError,
    StateConflictError,
)
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import SessionRecord, TaskRecord
from llama_deploy.types import SessionDefinition, SessionOptions, SessionPolicy, SessionState, generate_id
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.keys import public_id

RESERVED_PREFIX: Final = "__"
"""State keys with this prefix belong to the services. Clients neither see nor write them."""


def new_session(session_id: str, *, policy: SessionPolicy, at: datetime) -> SessionRecord:
    """Return a new session with an empty state."""
    return SessionRecord(
        session_id=session_id, policy=policy, state="{}", version=0, created_at=at, updated_at=at
    )


class Sessions:
    """Creates, lists and deletes sessions, and keeps their state."""

    def __init__(self, *, store: StateStore, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    async def create(self, options: SessionOptions) -> str:
        """Create a session and return its id. If the id exists, the existing session stays as it is."""
        session_id = options.session_id or generate_id()

        def run(unit: Unit) -> str:
            if unit.sessions.find(session_id) is None:
                unit.add_session(new_session(session_id, policy=options.policy, at=unit.now))
            return session_id

        return await self._writer.write(Command(run, Reads(sessions={session_id})))

    async def delete(self, session_id: str, *, cancel: bool) -> None:
        """Delete a session with its tasks. With `cancel`, running attempts are stopped.

        Raises:
            SessionNotFoundError: The session does not exist.
            SessionBusyError: It has open tasks and `cancel` is False.
        """
        await self._writer.write(
            Command(lambda unit: unit.delete_session(session_id, cancel=cancel), Reads(sessions={session_id}))
        )

    async def get(self, session_id: str) -> SessionDefinition:
        """Return a session.

        Raises:
            SessionNotFoundError: The session does not exist.
        """

        def read(tx: StoreTransaction) -> SessionDefinition:
            session = _load(tx, session_id)
            return _definition(session, tx.tasks.ids_of_sessions([session_id]))

        return await self._store.read(read)

    async def all(self, *, after: str = "", limit: int = 1000) -> dict[str, SessionDefinition]:
        """Return the sessions whose keys follow `after`, by id and in the order of their keys."""

        def read(tx: StoreTransaction) -> dict[str, SessionDefinition]:
            sessions = tx.sessions.page(after=after, limit=limit)
            tasks = tx.tasks.ids_of_sessions([session.session_id for session in sessions])
            return {public_id(item.session_id): _definition(item, tasks) for item in sessions}

        return await self._store.read(read)

    async def tasks(self, session_id: str) -> list[TaskRecord]:
        """Return the tasks of a session in the order in which they were accepted.

        Raises:
            SessionNotFoundError: The session does not exist.
        """

        def read(tx: StoreTransaction) -> list[TaskRecord]:
            _load(tx, session_id)
            return tx.tasks.of_sessions([session_id])

        return await self._store.read(read)

    async def last_task(self, session_id: str) -> TaskRecord | None:
        """Return the task of a session that was accepted last, None if it has none.

        Raises:
            SessionNotFoundError: The session does not exist.
        """

        def read(tx: StoreTransaction) -> TaskRecord | None:
            _load(tx, session_id)
            last = tx.tasks.ids_of_sessions([session_id]).get(session_id, ())[-1:]
            return next(iter(tx.tasks.load(last).values()), None)

        return await self._store.read(read)

    async def state(self, session_id: str) -> SessionState:
        """Return a session's state without the keys of the services.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return _state(await self._store.read(lambda tx: _load(tx, session_id)))

    async def merge_state(self, session_id: str, changes: dict[str, Any]) -> SessionState:
        """Overwrite the keys of `changes` in a session's state, and keep the others.

        Raises:
            SessionNotFoundError: The session does not exist.
            InvalidRequestError: A key has the reserved prefix.
            SerializationError: A value that cannot be encoded as JSON.
            PayloadTooLargeError: The state becomes too large.
        """
        check_state(changes)
        return await self._write(session_id, lambda unit: unit.sessions.merge_state(session_id, changes))

    async def replace_state(self, session_id: str, state: dict[str, Any], *, version: int) -> SessionState:
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
            session = unit.sessions.get(session_id)
            if session.version != version:
                raise StateConflictError(
                    f"the state of session {session_id} has version {session.version}, not {version};"
                    " read it again",
                    expected=version,
                    actual=session.version,
                )
            kept = {key: value for key, value in json.loads(session.state).items() if _is_reserved(key)}
            return unit.sessions.put_state(session, {**kept, **state})

        return await self._write(session_id, run)

    async def _write(self, session_id: str, run: Callable[[Unit], SessionRecord]) -> SessionState:
        return _state(await self._writer.write(Command(run, Reads(sessions={session_id}))))


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


def _load(tx: StoreTransaction, session_id: str) -> SessionRecord:
    session = tx.sessions.load([session_id]).get(session_id)
    if session is None:
        raise SessionNotFoundError(f"there is no session {session_id}", session_id=session_id)
    return session


def _state(session: SessionRecord) -> SessionState:
    return SessionState(state=visible(json.loads(session.state)), version=session.version)


def _definition(session: SessionRecord, tasks: Mapping[str, list[str]]) -> SessionDefinition:
    return SessionDefinition(
        session_id=public_id(session.session_id),
        task_ids=[public_id(task_id) for task_id in tasks.get(session.session_id, ())],
        state=visible(json.loads(session.state)),
        policy=session.policy,
    )
