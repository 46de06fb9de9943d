"""Packs event streams that have grown, so that they take space in proportion to what was streamed.

New events are stored as they come, one row each. That costs least for the many tasks that stream little, and
those are never packed. A stream that has grown is packed in the background, beside the writer: the events are
read, put into the pack in a thread, and replaced in a short transaction of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.concurrency.retrying import retry
from llama_deploy.control_plane.storage.stream_growth import Growth
from llama_deploy.errors import LlamaDeployError, UnavailableError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.event_packs import packed
from llama_deploy.state_stores.records import EventPackRecord, EventRecord

logger = logging.getLogger(__name__)

_PAGE: Final = 1000
_PAGE_BYTES: Final = 1024 * 1024
"""How much is packed at a time: so much data, and one event more, is in memory."""
_MAX_NOTED: Final = 10_000
"""Of how many streams it is noted how they grow. Further ones are packed later, at their ends."""
_BACKOFF: Final = Backoff(first=0.5, longest=8.0)
_LOOK_AGAIN_SECONDS: Final = 10.0
"""How often it is asked whether older releases, which cannot read packs, still work on the store."""


WHILE_OPEN: Final = Growth(512, 1024 * 1024)
"""How much of a stream is added to its packs together while its task is open."""
AT_END: Final = Growth(64, 32 * 1024)
"""How much is packed when the task has ended. Less remains as it is."""


class StreamPacker:
    """Packs the streams that this control plane writes.

    If it is killed, another one packs what a stream has left when that grows there, or ends. A stream whose
    task has just ended remains as it is, which costs space and nothing else.

    Args:
        store: Holds the streams.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._growth: dict[str, Growth] = {}
        """What was added to open streams since they were packed."""
        self._due: dict[str, None] = {}
        """The streams to be packed, in order."""
        self._woken = asyncio.Event()

    def note(self, streamed: Mapping[str, Growth], *, ended: Collection[str]) -> None:
        """Streams have grown; some of their tasks have ended with that."""
        for task_id, growth in streamed.items():
            total = self._growth.pop(task_id, Growth()).plus(growth)
            has_ended = task_id in ended
            if total.reaches(AT_END if has_ended else WHILE_OPEN):
                self._due[task_id] = None
                self._woken.set()
            elif not has_ended and len(self._growth) < _MAX_NOTED:
                self._growth[task_id] = total

    async def run(self) -> None:
        """Pack what is due until cancelled."""
        await self._wait_for_older_releases()
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._due:
                task_id = next(iter(self._due))
                del self._due[task_id]
                try:
                    await retry(partial(self.pack, task_id), backoff=_BACKOFF, retry_on=_is_outage)
                except LlamaDeployError as exc:
                    logger.warning(
                        "the stream of task %s is not packed: %s",
                        task_id,
                        exc,
                        extra={"action": "stream_not_packed", "task_id": task_id},
                    )

    async def _wait_for_older_releases(self) -> None:
        """They do not read packs, and cannot start on a store that a newer one has upgraded."""
        is_mixed = self._store.has_older_company
        while await retry(is_mixed, backoff=_BACKOFF, retry_on=_is_outage):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def pack(self, task_id: str) -> None:
        """Pack all events of a stream that are stored now, but for the terminal one.

        Raises:
            UnavailableError: The store does not answer.
        """
        is_full = True
        while is_full:  # what comes meanwhile is packed later: each time costs a whole pack
            last, loose = await self._store.read(partial(_load, task_id=task_id))
            if not loose:
                return
            is_full = len(loose) >= _PAGE or sum(event.data_bytes for event in loose) >= _PAGE_BYTES
            packs = await in_own_thread("stream-packer", partial(packed, loose, onto=last))
            replace = partial(_replace, task_id=task_id, last=last, first=loose[0].position, packs=packs)
            if not await self._store.transact(replace, synced=False):
                return  # another control plane packs it, or it was deleted


def _is_outage(error: LlamaDeployError) -> bool:
    return isinstance(error, UnavailableError)


def _load(tx: StoreTransaction, *, task_id: str) -> tuple[EventPackRecord | None, list[EventRecord]]:
    return tx.events.last_pack(task_id), tx.events.loose(task_id, limit=_PAGE, max_bytes=_PAGE_BYTES)


def _replace(
    tx: StoreTransaction,
    *,
    task_id: str,
    last: EventPackRecord | None,
    first: int,
    packs: list[EventPackRecord],
) -> bool:
    """Store the packs if nothing else has happened to these events since they were read."""
    tx.lock(task_ids=[task_id])
    loose = tx.events.loose(task_id, limit=1)
    if not loose or loose[0].position != first or tx.events.last_pack(task_id) != last:
        return False
    tx.events.put_packs(packs)
    return True
