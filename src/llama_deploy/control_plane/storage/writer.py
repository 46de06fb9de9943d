"""One transaction for the writes of many requests.

A request submits a command, a function over a `Unit`. Commands that wait at the same time run in one
transaction, in order: a single request gets a commit at once, a hundred share one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, cast

from llama_deploy.concurrency.batching import Batcher
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.decisions.size_limits import SizeLimits
from llama_deploy.control_plane.storage.feed_interest import FeedInterest
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.control_plane.storage.unit import Committed, Unit, UnitContext
from llama_deploy.errors import ConflictError, InternalServerError, LlamaDeployError, UnavailableError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.types.topics import Topics

logger = logging.getLogger(__name__)

R = TypeVar("R")

_NOTHING: Final = Reads()
_UNLIMITED: Final = SizeLimits()

_MAX_BATCH: Final = 256
_MAX_RACES: Final = 3
"""How often a transaction may lose the race with another control plane to store a key."""


@dataclass(frozen=True, slots=True)
class Command(Generic[R]):
    """A write of one request."""

    run: Callable[[Unit], R]
    """Raises before it changes anything, or changes everything that it is to change."""
    reads: Reads = _NOTHING
    """The rows that it uses."""
    synced: bool = True
    """Whether the change must survive a power failure; a change that can be repeated need not."""


class Writer:
    """Groups commands into transactions, one at a time.

    Args:
        store: Where to write.
        clock: Returns the present time, aware, UTC.
        topics: Where messages go.
        pace: How long attempts wait before they are published.
        after_commit: Called with what each transaction has changed, before its commands return.
        limits: How large inboxes and the state of sessions may become.
        known_removals: Whether ids of removed tasks have to be looked up. None: always.
        interest: Whether the notices to other control planes are to name each task whose status changes.
        on_transaction: Called with how many seconds a transaction took, and whether it failed.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, and assembled in one place
        self,
        store: StateStore,
        *,
        clock: Callable[[], datetime],
        topics: Topics,
        pace: DispatchPace,
        after_commit: Callable[[Committed], None],
        limits: SizeLimits = _UNLIMITED,
        known_removals: KnownRemovals | None = None,
        interest: FeedInterest | None = None,
        on_transaction: Callable[[float, bool], None] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._context = UnitContext(
            clock=clock,
            topics=topics,
            pace=pace,
            limits=limits,
            removals=known_removals or KnownRemovals(),
        )
        self._after_commit = after_commit
        self._on_transaction = on_transaction
        self._interest = FeedInterest() if interest is None else interest
        self._sent: list[str] = []
        self.failed_at: datetime | None = None
        """When the store last failed."""
        self._batcher: Batcher[Command[Any], Any] = Batcher(
            self._flush, max_batch=_MAX_BATCH, name="control-plane-writer"
        )

    async def write(self, command: Command[R]) -> R:
        """Run `command` and return its value once it is durable.

        Raises:
            LlamaDeployError: The command raised it, and nothing of it was stored.
            OverloadedError: Too many commands wait.
            UnavailableError: The store does not answer.
        """
        return cast("R", await self._batcher.submit(command))

    async def write_all(self, commands: Sequence[Command[R]]) -> list[R | LlamaDeployError]:
        """Run `commands` in order and return the value or error of each."""
        futures = [self._batcher.submit_nowait(command) for command in commands]
        outcomes: list[R | LlamaDeployError] = []
        for future in futures:
            try:
                outcomes.append(await future)
            except LlamaDeployError as exc:
                outcomes.append(exc)
            except Exception as exc:
                logger.exception("a write failed", extra={"action": "write_failed"})
                outcomes.append(InternalServerError(f"{type(exc).__name__} while writing: {exc}"))
        return outcomes

    def forget_sent(self, message_ids: Sequence[str]) -> None:
        """Delete published messages from the outbox, with the next transaction.

        Until then they may be published again after a crash, which is harmless.
        """
        self._sent.extend(message_ids)

    async def flush_sent(self) -> None:
        """Delete the messages given to `forget_sent` now.

        Raises:
            UnavailableError: The store does not answer.
        """
        if self._sent:
            await self.catch_up()

    async def catch_up(self) -> None:
        """Return when all commands submitted before are stored.

        Raises:
            UnavailableError: The store does not answer.
        """
        await self.write(Command(lambda _: None, synced=False))

    async def close(self) -> None:
        """Finish what waits. Idempotent."""
        try:
            await self.flush_sent()
        finally:
            await self._batcher.close()

    async def _flush(self, commands: Sequence[Command[Any]]) -> Sequence[Any]:
        """Run commands in one transaction; if one of them cannot be stored, each in its own."""
        try:
            return await self._transact_with_races(commands)
        except Exception as exc:
            if len(commands) == 1 or (isinstance(exc, LlamaDeployError) and exc.retriable):
                raise
            logger.warning(
                "a transaction of %d writes failed; repeating each alone: %s",
                len(commands),
                exc,
                extra={"action": "isolate_writes"},
            )
        return [await self._transact_alone(command) for command in commands]

    async def _transact_alone(self, command: Command[Any]) -> Any:
        try:
            return (await self._transact_with_races([command]))[0]
        except Exception as exc:  # noqa: BLE001 - handed to the submitter
            return exc

    async def _transact_with_races(self, commands: Sequence[Command[Any]]) -> Sequence[Any]:
        """Run commands in one transaction, and repeat it if another control plane has stored a key first.

        The next time they see the stored row and decide on that.
        """
        for _ in range(_MAX_RACES if self._store.shared else 0):
            try:
                return await self._transact(commands)
            except ConflictError as exc:
                logger.debug(
                    "another control plane has stored a key first: %s", exc, extra={"action": "write_again"}
                )
        return await self._transact(commands)

    async def _transact(self, commands: Sequence[Command[Any]]) -> Sequence[Any]:
        sent, self._sent = self._sent, []
        reads = Reads.merged([command.reads for command in commands])
        names_changes = self._interest.until is not None and self._interest.is_shown()

        def work(tx: StoreTransaction) -> tuple[list[Any], Committed]:
            unit = Unit.load(
                tx,
                reads,
                self._context,
                names_changes=names_changes,
            )
            outcomes = [_run(command, unit) for command in commands]
            if sent:
                tx.outbox.delete(sent)
            return outcomes, unit.flush()

        began = time.perf_counter()
        try:
            synced = any(command.synced for command in commands)
            outcomes, committed = await self._store.transact(work, synced=synced)
        except BaseException as exc:
            self._sent.extend(sent)
            # A conflict is a race that is run again, and no fault of the store.
            if self._on_transaction is not None and not isinstance(
                exc, asyncio.CancelledError | ConflictError
            ):
                self._on_transaction(time.perf_counter() - began, True)
            if isinstance(exc, UnavailableError):
                self.failed_at = self._clock()
            raise
        if self._on_transaction is not None:
            self._on_transaction(time.perf_counter() - began, False)
        self._after_commit(committed)
        return outcomes


def _run(command: Command[Any], unit: Unit) -> Any:
    """Return the command's value, or the error that it raised."""
    unit.enter(command.reads)
    try:
        return command.run(unit)
    except LlamaDeployError as exc:
        return exc
