"""Tasks that were running when the copy of a store was made: their attempts are taken back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.decisions.takeovers import TakeoverReason
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types.topics import Topics

_PAGE: Final = 100
"""How many instances one transaction removes, with their tasks."""


async def take_back_running(
    store: StateStore, config: ControlPlaneConfig, *, clock: Callable[[], datetime]
) -> int:
    """Take back the attempts that run in a store which no control plane uses; return how many there were.

    It is as if all processes had died, but no task is charged with that. Each task gets its next attempt,
    which has a token of its own, so what an instance still reports for an earlier attempt is refused. All
    instances are removed; those that live register again.

    Raises:
        UnavailableError: The store does not answer.
    """
    writer = Writer(
        store,
        clock=clock,
        topics=Topics(config.topic_namespace),
        pace=DispatchPace(
            unclaimed=Backoff(config.redispatch_seconds, longest=64 * config.redispatch_seconds),
            lost=Backoff(config.retry_backoff_seconds, longest=config.retry_backoff_max_seconds),
        ),
        after_commit=lambda _: None,
    )
    count = 0
    try:
        while instances := (await store.read(lambda tx: tx.instances.load()))[:_PAGE]:
            ids = {instance.instance_id for instance in instances}
            count += await writer.write(Command(partial(_take_back, instance_ids=ids), Reads(instances=ids)))
    finally:
        await writer.close()
    return count


def _take_back(unit: Unit, *, instance_ids: set[str]) -> int:
    running = unit.tasks.of_instances(instance_ids)
    for task in running:
        unit.apply(lifecycle.take_back(task, reason=TakeoverReason.LOST, at=unit.now))
    unit.remove_instances(instance_ids)
    return len(running)
