"""The unit of work: the rows of one grouped transaction, read once, changed in memory, written once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Self

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.deaths import Blame
from llama_deploy.control_plane.decisions.destinations import Destination
from llama_deploy.control_plane.decisions.dispatch_rules import (
    DispatchPace,
    Takers,
    has_free_slot,
    next_turn,
)
from llama_deploy.control_plane.decisions.size_limits import SizeLimits
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.control_plane.storage import read_budget
from llama_deploy.control_plane.storage.audit_rows import AuditRows
from llama_deploy.control_plane.storage.fleets import FleetChange, Fleets, KnownFleets
from llama_deploy.control_plane.storage.inbox_rows import InboxRows
from llama_deploy.control_plane.storage.outgoing import Outgoing, OutgoingMessages
from llama_deploy.control_plane.storage.question_rows import QuestionRows
from llama_deploy.control_plane.storage.read_budget import ReadBudget
from llama_deploy.control_plane.storage.reads import Reads, Scope
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.control_plane.storage.run_rows import RunRows
from llama_deploy.control_plane.storage.service_rows import InstanceRows, ServiceRows
from llama_deploy.control_plane.storage.session_rows import SessionRows
from llama_deploy.control_plane.storage.step_rows import StepRows
from llama_deploy.control_plane.storage.stream_growth import Growth
from llama_deploy.control_plane.storage.task_rows import TaskRows
from llama_deploy.errors import SessionBusyError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.renamed import see
from llama_deploy.state_stores.base import Notice, StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord, SessionRecord, TaskRecord, VersionRecord
from llama_deploy.types import EventDefinition, SessionPolicy, TaskStatus
from llama_deploy.types.audit import Actor
from llama_deploy.types.instance_protocol import MAX_EVENT_CHARACTERS, TaskCancellation
from llama_deploy.types.keys import public_id
from llama_deploy.types.topics import Topics

_RELAY_SECONDS: Final = 2.0
"""After how long another control plane may publish a message that is still in the outbox."""


@dataclass(slots=True)
class Committed:
    """What a transaction has changed, for the parts that react to it."""

    outgoing: Sequence[Outgoing] = ()
    grown: set[str] = field(default_factory=set)
    """Ids of tasks whose stream has grown."""
    streamed: Mapping[str, Growth] = field(default_factory=dict)
    """What was added to the streams that are not short."""
    ended: dict[str, TaskRecord] = field(default_factory=dict)
    changed: Callable[[], Sequence[TaskRecord]] = tuple
    """Returns the tasks that are new or have changed, but for those with other progress only."""
    deleted: set[str] = field(default_factory=set)
    """Ids of tasks that were deleted."""
    unrouted: dict[str, str] = field(default_factory=dict)
    """Tasks that wait for the orchestrator, each with its session."""
    fleets: list[FleetChange] = field(default_factory=list)
    """The instances that have joined or left, as far as an attempt may have to go elsewhere for that."""
    lost: list[tuple[TaskRecord, TaskRecord]] = field(default_factory=list)
    """The tasks that were taken from their instances, before and after that."""
    free: set[str] = field(default_factory=set)
    """Services with an instance that has reported a free slot."""
    due: datetime | None = None
    """When the first of the new timers, delayed attempts and lease ends is due; None without one."""


@dataclass(frozen=True, slots=True)
class UnitContext:
    """What the units of one control plane share."""

    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""
    topics: Topics
    pace: DispatchPace
    """How long attempts wait before they are published."""
    limits: SizeLimits
    """How large inboxes and the state of sessions may become."""
    removals: KnownRemovals
    """Whether ids of removed tasks have to be looked up."""
    fleets: KnownFleets = field(default_factory=KnownFleets)


class Unit:
    """The rows of one transaction, by entity, and the changes that concern several of them.

    Commands run on it one after the other, each seeing what the earlier ones changed. A command raises
    before it changes anything, so that one that fails leaves the others untouched. It may use only rows that
    it has declared; any other raises `UndeclaredReadError`.
    """

    def __init__(
        self,
        tx: StoreTransaction,
        context: UnitContext,
        *,
        now: datetime,
        names_changes: bool = False,
    ) -> None:
        limits = context.limits
        self._tx = tx
        self._pace = context.pace
        self._names_changes = names_changes
        self._scope = Scope()
        self._outgoing = OutgoingMessages(context.topics)
        self._committed = Committed()
        self.now = now
        """The time of the transaction."""
        self.tasks = TaskRows(tx, self._scope)
        self.sessions = SessionRows(tx, self._scope, limits=limits, now=now)
        self.inbox = InboxRows(tx, self._scope, self.tasks, limits)
        self.budget = ReadBudget(read_budget.MAX_READ_BYTES)
        """What the transaction may still read of large values that can be left out."""
        self.runs = RunRows(tx, self._scope, self.budget)
        self.questions = QuestionRows(tx, self._scope, self.tasks, now=now)
        self.steps = StepRows(tx)
        self.audit = AuditRows(tx, now=now)
        """Who has changed what; a command notes what it does."""
        self.instances = InstanceRows(tx, self._scope)
        self.services = ServiceRows(tx, self._scope, self.instances)
        self.fleets = Fleets(tx, context.fleets, instances=self.instances, runs=self.runs, now=now)

    @classmethod
    def load(
        cls,
        tx: StoreTransaction,
        reads: Reads,
        context: UnitContext,
        *,
        names_changes: bool = False,
    ) -> Self:
        """Lock and read what the commands have declared, in as few statements as possible."""
        tx.lock(session_ids=reads.sessions, task_ids=reads.tasks, instance_ids=reads.instances)
        free = tx.lock_free(reads.free_tasks) if reads.free_tasks else set[str]()
        now = context.clock()  # waiting for locks may have taken long
        unit = cls(tx, context, now=now, names_changes=names_changes)
        unit.tasks.load(free | reads.tasks)
        if context.removals.exist:
            unit.tasks.load_removed(reads.tasks)
        unit.sessions.load(unit.tasks.sessions_of(reads.sessions_of_tasks) | reads.sessions)
        unit.tasks.load_open(unit.tasks.sessions_of(reads.ending_tasks) | reads.sessions)
        unit.runs.load([task.task_id for task in unit.tasks.loaded(reads.runs) if task.has_run])
        unit.inbox.load_keys(reads.inbox_keys)
        unit.inbox.load_sizes(reads.inboxes)
        if reads.questions:
            unit.questions.load(reads.questions)
        if reads.asking_tasks:
            unit.questions.load_open(reads.asking_tasks)
        unit.instances.load(reads.instances)
        unit.services.load(reads.services)
        return unit

    def enter(self, reads: Reads, *, by: Actor | None = None) -> None:
        """Begin a command, which may use what it has declared.

        Args:
            reads: What it has declared.
            by: Who is named in the audit log for what it does. None: nobody.
        """
        self.audit.by = by
        self._scope.enter(
            reads,
            sessions=self.tasks.sessions_of(reads.sessions_of_tasks),
            ending_sessions=self.tasks.sessions_of(reads.ending_tasks),
        )

    def apply(
        self, transition: Transition, *, may_share: bool = True, to: Destination | None = None
    ) -> TaskRecord:
        """Store what a transition made of a task, with all its effects.

        Args:
            transition: The transition.
            may_share: Whether an attempt may go to the topic that all instances of its service share.
            to: Where the attempt goes. None: it is decided here.
        """
        task = transition.task
        self._store_run(transition)
        if transition.dispatch:
            task = self._send(task, to or self.fleets.destination(task, may_share=may_share))
        before = self.tasks.put(task)
        if transition.events:
            self.tasks.append_events(task, transition.events, attempt=before.attempt)
        if transition.events or task.takeovers != before.takeovers:
            self._committed.grown.add(task.task_id)
        if transition.route:
            self._committed.unrouted[task.task_id] = task.session_id
        if (timer := task.redispatch_at if lifecycle.is_held_back(task) else task.wake_at) is not None:
            self.note_due(timer)
        if transition.notify_cancel:
            cancellation = TaskCancellation(task_id=task.task_id, attempt=task.attempt)
            self._outgoing.tell_instance(task, ActionTypes.CANCEL_TASK, cancellation)
        if transition.ended:
            self._committed.ended[task.task_id] = task
        waiting = TaskStatus.WAITING
        begins_to_wait = task.shown_status is waiting and before.shown_status is not waiting
        if transition.ended or begins_to_wait:
            self._start_next(task.session_id)
        return task

    def _start_next(self, session_id: str) -> None:
        """A task of the session has ended, or begun to wait: start the one whose turn it is, if any."""
        open_tasks = self.tasks.oldest_open_of(session_id)
        pass_waiting = (
            len(open_tasks) > 1
            and any(task.shown_status is TaskStatus.WAITING for task in open_tasks)
            and self.sessions.policy_of(session_id) is SessionPolicy.PARALLEL_WHILE_WAITING
        )
        if pass_waiting:
            open_tasks = self.tasks.oldest_open_of(session_id, past_waiting=True)
        following = next_turn(open_tasks, pass_waiting=pass_waiting, at=self.now)
        if following is not None:
            self.apply(following)

    def _send(self, task: TaskRecord, destination: Destination) -> TaskRecord:
        self.fleets.note(task, destination)
        self._outgoing.dispatch(task, destination)
        if destination.is_nowhere:
            # An instance that fits ends this pause when it registers.
            return task._replace(redispatch_at=self._pace.as_long_again(task, at=self.now))
        due = self._pace.redispatch_at(dispatches=task.dispatches, at=self.now)
        return task._replace(redispatch_at=due)

    def _store_run(self, transition: Transition) -> None:
        task = transition.task
        if transition.journal is not None:
            self.runs.write(transition.journal)
            self.inbox.consume(task, transition.journal.consumed)
        if transition.forget_run:
            self.runs.forget([task.task_id])
        if transition.restore_inbox:
            self.inbox.restore(task)
        if transition.drop_inbox:
            self.inbox.consume(task, range(1, task.inbox_length + 1))
        if transition.waits is not None and (deadline := self.questions.take(task, transition.waits)):
            self.note_due(deadline)
        if task.wait_reports is not None and (transition.ended or transition.route):
            self.questions.end(task)

    def add_session(self, session: SessionRecord) -> None:
        """Store a new session."""
        self.sessions.add(session)
        self.tasks.start_session(session.session_id)

    def delete_session(self, session_id: str, *, cancel: bool) -> int:
        """Delete a session with all that belongs to it, and return how many tasks it had.

        Args:
            session_id: The session.
            cancel: Whether it may have open tasks, which are deleted too.

        Raises:
            SessionNotFoundError: It does not exist.
            SessionBusyError: It has open tasks and `cancel` is False.
        """
        self.sessions.get(session_id)
        if not cancel and (open_tasks := self.tasks.open_of(session_id)):
            count = len(open_tasks)
            raise SessionBusyError(
                f"session {public_id(session_id)} has {count} open task{'s' if count > 1 else ''}; wait until"
                " they have ended, or delete it with cancel=True (over HTTP: ?cancel=true), which stops them;"
                f" {see('Deleting sessions')}",
                session_id=public_id(session_id),
                open_tasks=count,
            )
        deleted = self.tasks.drop_session(session_id)
        self.inbox.drop(deleted)
        self.questions.drop(deleted)
        self.runs.forget(deleted, stored=False)
        self.steps.drop(deleted)
        self.sessions.delete(session_id)
        self._committed.deleted.update(deleted)
        return len(deleted)

    def add_task(self, transition: Transition) -> TaskRecord:
        """Store a new task."""
        self.tasks.add(transition.task)
        return self.apply(transition)

    def add_to_inbox(self, task: TaskRecord, event: EventDefinition) -> TaskRecord:
        """Append an event to a task's inbox, and tell the instance that runs it, or wake its parked run.

        Raises:
            PayloadTooLargeError: The event is too large.
            OverloadedError: The inbox is too large.
        """
        task = task._replace(inbox_length=task.inbox_length + 1)
        entry = self.inbox.add(task, event)
        # A larger event is brought by the answer to the instance's next heartbeat.
        if task.status is TaskStatus.RUNNING and len(event.event_obj_str) <= MAX_EVENT_CHARACTERS:
            self._outgoing.tell_instance(task, ActionTypes.SEND_EVENT, entry)
        return self.apply(lifecycle.wake(task, at=self.now))

    def publish(self, message: QueueMessage) -> None:
        """Send a message to the topic of its type after the transaction."""
        self._outgoing.publish(message)

    def move_on(self, task: TaskRecord, blame: Blame, *, because: str | None = None) -> TaskRecord:
        """The process that ran the task is gone. `because` follows `the process`."""
        moved = lifecycle.move_on(task, blame, at=self.now, backoff=self._pace.lost, because=because)
        return self._lose(task, moved)

    def drop(self, task: TaskRecord) -> TaskRecord:
        """The instance that has claimed the task's attempt does not hold it."""
        return self._lose(task, lifecycle.drop(task, at=self.now, backoff=self._pace.lost))

    def _lose(self, task: TaskRecord, moved: Transition) -> TaskRecord:
        after = self.apply(moved)
        self._committed.lost.append((task, after))
        return after

    def postpone(self, task: TaskRecord) -> None:
        """Decide later whether an attempt has to be published again."""
        due = self._pace.redispatch_at(dispatches=1, at=self.now)
        self.apply(Transition(task._replace(redispatch_at=due)))

    def publish_again(self, task: TaskRecord, by: Takers) -> bool:
        """Publish an attempt if somebody can take it, or decide later; return whether it is published."""
        held_until = self._pace.held_until(task, by, at=self.now)
        if held_until is not None:
            self.apply(Transition(task._replace(redispatch_at=held_until)))
            return False
        again = lifecycle.dispatch_again(task)
        if not again.dispatch:
            return False
        to = self.fleets.destination(task)
        if to.is_nowhere:
            # It is not delayed any more, though it was not published.
            again = Transition(task._replace(dispatches=max(1, task.dispatches)), dispatch=True)
        self.apply(again, to=to)
        return not to.is_nowhere

    def send_elsewhere(self, task: TaskRecord, changes: Collection[FleetChange]) -> bool:
        """Publish an attempt again if instances that have joined or left change where it goes.

        Returns:
            Whether it is published.
        """
        if task.status is not TaskStatus.QUEUED or lifecycle.is_held_back(task):
            return False
        to = self.fleets.moved(task, changes)
        if to is not None:
            self.apply(Transition(task, dispatch=True), to=to)
        return to is not None

    def renew_lease(self, instance: InstanceRecord, lease: timedelta) -> None:
        """The instance has shown that it lives."""
        renewed = instance._replace(lease_expires_at=self.now + lease)
        if has_free_slot(renewed):
            self._committed.free.add(renewed.service_name)
        if instance.lease_expires_at > self.now:
            self.instances.put(renewed)
            return
        self.fleets.forget([renewed.service_name])
        self._join(renewed)
        # Attempts may have been held because no instance was alive.
        self.note_due(self.now)

    def add_instance(self, instance: InstanceRecord, *, shape: str | None) -> None:
        """An instance registers, perhaps again. What waits for one that fits is sent to it.

        Args:
            instance: The instance.
            shape: The `WorkflowShape` of its version as JSON. None: it has no version.
        """
        name, version = instance.service_name, instance.version
        is_new = version not in self.fleets.of(name).versions
        self._join(instance)
        self.note_due(self.now)  # what has waited for the first instance goes on
        if shape is not None and version is not None and is_new:
            self.services.put_version(VersionRecord(name, version, shape))

    def _join(self, instance: InstanceRecord) -> None:
        """Store a living instance that may not have been a member of its fleet."""
        living = self.fleets.of(instance.service_name)
        is_alike = living.versions == (instance.version,)
        if not (is_alike or instance.only_suspects or living.has(instance.instance_id)):
            self._committed.fleets.append(_change(instance, has_joined=True))
        self.instances.put(instance)
        self.fleets.forget([instance.service_name])

    def remove_instances(self, instance_ids: Collection[str]) -> None:
        """Delete instances."""
        found = [self.instances.find(each) for each in instance_ids]
        self.instances.delete(instance_ids)
        self.lose_instances([instance for instance in found if instance is not None])

    def lose_instances(self, lost: Collection[InstanceRecord]) -> None:
        """Instances are gone, deleted or without a lease: what was sent to their topics goes to others."""
        self.fleets.forget({instance.service_name for instance in lost})
        for instance in lost:
            living = self.fleets.of(instance.service_name).versions
            is_mixed = any(version != instance.version for version in living) and not instance.only_suspects
            if is_mixed or self.fleets.has_sent_to(instance.instance_id):
                self._committed.fleets.append(_change(instance, has_joined=False))

    def note_due(self, at: datetime) -> None:
        """Something becomes due then."""
        self._committed.due = min(self._committed.due or at, at)

    def flush(self) -> Committed:
        """Write all changes."""
        committed = self._committed
        if self.questions.has_changed:
            self.questions.flush()  # first: a trigger ends those that a task has left open when it ended
        for rows in (
            self.sessions,
            self.tasks,
            self.inbox,
            self.runs,
            self.steps,
            self.instances,
            self.audit,
        ):
            rows.flush()
        self._outgoing.flush(self._tx, relay_at=self.now + timedelta(seconds=_RELAY_SECONDS))
        committed.outgoing = self._outgoing.messages
        committed.streamed = self.tasks.streamed
        committed.changed = self.tasks.changed
        changed = committed.grown | committed.deleted
        if self._names_changes:
            changed.update(task.task_id for task in self.tasks.changed())
        if changed or committed.due is not None:
            self._tx.notify(Notice(task_ids=frozenset(changed), due=committed.due))
        return committed


def _change(instance: InstanceRecord, *, has_joined: bool) -> FleetChange:
    return FleetChange(instance.service_name, instance.instance_id, instance.version, has_joined)
