"""What a command reads, declared before its transaction begins, and the check that it reads nothing else.

The rows of all commands of a transaction are locked and read together, in one order. A row that was not
declared is neither locked nor loaded; without the check it would look as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import Any, Final, NamedTuple


class Reads(NamedTuple):
    """The rows that a command reads or changes. Combine two with `|`."""

    tasks: AbstractSet[str] = frozenset()
    free_tasks: AbstractSet[str] = frozenset()
    """Tasks that are left out if another control plane has locked them."""
    sessions: AbstractSet[str] = frozenset()
    """Sessions, together with their open tasks."""
    sessions_of_tasks: AbstractSet[str] = frozenset()
    """Tasks whose sessions are read, without the other tasks of these sessions."""
    ending_tasks: AbstractSet[str] = frozenset()
    """Tasks that may end: the open tasks of their sessions are read, because one of them is next."""
    runs: AbstractSet[str] = frozenset()
    """Tasks whose stored runs are read."""
    inbox_keys: AbstractSet[tuple[str, str]] = frozenset()
    """Pairs of a task and an idempotency key that its inbox may contain."""
    inboxes: AbstractSet[str] = frozenset()
    """Tasks to whose inboxes is added."""
    instances: AbstractSet[str] = frozenset()
    """Instances, together with the tasks that they run."""
    services: AbstractSet[str] = frozenset()
    questions: AbstractSet[str] = frozenset()
    asking_tasks: AbstractSet[str] = frozenset()
    """Tasks whose open questions are read."""

    @classmethod
    def of_tasks(
        cls, *task_ids: str, may_end: bool = False, with_session: bool = False, with_run: bool = False
    ) -> Reads:
        """Return the reads of a command on tasks.

        Args:
            task_ids: The tasks.
            may_end: Whether the command may end them.
            with_session: Whether it uses their sessions.
            with_run: Whether it uses what is stored of their runs.
        """
        ids, none = frozenset(task_ids), frozenset[str]()
        return cls(
            tasks=ids,
            sessions_of_tasks=ids if with_session else none,
            ending_tasks=ids if may_end else none,
            runs=ids if with_run else none,
        )

    @classmethod
    def merged(cls, reads: Sequence[Reads]) -> Reads:
        """Return the union of the reads of several commands."""
        if len(reads) == 1:
            return reads[0]
        return cls(*(frozenset().union(*filter(None, column)) for column in zip(*reads, strict=True)))

    def __or__(self, other: Reads) -> Reads:
        pairs: zip[tuple[AbstractSet[Any], AbstractSet[Any]]] = zip(self, other, strict=True)
        return Reads(*[mine | its if mine and its else mine or its for mine, its in pairs])


class RowKind(IntEnum):
    """What a command may have to declare; an index into the lists of a `Scope`."""

    TASK = 0
    SESSION = 1
    OPEN_TASKS = 2
    RUN = 3
    INBOX_KEY = 4
    INSTANCE = 5
    SERVICE = 6
    INBOX = 7
    QUESTION = 8
    OPEN_QUESTIONS = 9


_NOTHING: Final[Sequence[AbstractSet[object]]] = (frozenset(),) * len(RowKind)
"""No rows, of each kind."""


class UndeclaredReadError(RuntimeError):
    """A command uses a row that is not in its `Reads`: a bug of the command, never a mistake of a user."""

    def __init__(self, kind: RowKind, key: object) -> None:
        what = kind.name.lower().replace("_", " ")
        super().__init__(f"the command uses {what} {key!r}, which its Reads do not declare")
        self.kind = kind
        self.key = key


class Scope:
    """The rows that the current command may use: what it has declared, and what follows from that."""

    def __init__(self) -> None:
        self._declared: Sequence[AbstractSet[object]] = _NOTHING
        self._derived: Sequence[set[object]] = [set() for _ in _NOTHING]

    def enter(self, reads: Reads, *, sessions: AbstractSet[str], ending_sessions: AbstractSet[str]) -> None:
        """Begin a command.

        Args:
            reads: What it has declared.
            sessions: The sessions of its `sessions_of_tasks`.
            ending_sessions: The sessions of its `ending_tasks`.
        """
        self._declared = (
            reads.tasks | reads.free_tasks if reads.free_tasks else reads.tasks,
            reads.sessions | sessions if sessions else reads.sessions,
            reads.sessions | ending_sessions if ending_sessions else reads.sessions,
            reads.runs,
            reads.inbox_keys,
            reads.instances,
            reads.services,
            reads.inboxes,
            reads.questions,
            reads.asking_tasks,
        )
        for derived in self._derived:
            if derived:
                derived.clear()

    def allow(self, kind: RowKind, keys: Iterable[object]) -> None:
        """Let the command use rows that follow from declared ones, or that it has created."""
        self._derived[kind].update(keys)

    def require(self, kind: RowKind, key: object) -> None:
        """Raise `UndeclaredReadError` if the command may not use a row."""
        if key not in self._declared[kind] and key not in self._derived[kind]:
            raise UndeclaredReadError(kind, key)
