"""The metrics of a control plane as text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
from llama_deploy.control_plane.measuring.backlogs import Backlogs, StoreLoad
from llama_deploy.errors import UnavailableError
from llama_deploy.measures import gauge, text_of
from llama_deploy.state_stores.base import StateStore, StoreSizes

_BY_SERVICE = ("service",)


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """Reads the gauges when it is asked, and adds what was counted since the start."""

    store: StateStore
    backlogs: Backlogs
    relay: OutboxRelay
    paused_seconds: Callable[[], float]
    """Returns for how many seconds of the last minute the event loop has not had its turn."""
    registry: CollectorRegistry | None
    """What was counted. None: nothing is."""

    async def text(self) -> str:
        """Return the metrics in the text format of Prometheus.

        If the store does not answer, `llama_deploy_store_up` is 0, and what is read from it is missing.
        """
        load: StoreLoad | None = None
        sizes: StoreSizes | None = None
        try:
            load = await self.backlogs.all()
            sizes = await self.store.sizes()
        except UnavailableError:
            pass
        gauges = list(self._of_parts(is_up=load is not None))
        if load is not None:
            gauges += _of_load(load)
        if sizes is not None:
            gauges += _of_sizes(sizes)
        registry = CollectorRegistry() if self.registry is None else self.registry
        # With many services this takes long.
        return await asyncio.to_thread(text_of, registry, gauges)

    def _of_parts(self, *, is_up: bool) -> Iterator[Metric]:
        yield gauge(
            "llama_deploy_store_up", "Whether the state store has answered this request.", [((), is_up)], ()
        )
        yield gauge(
            "llama_deploy_outbox_messages",
            "Messages that this control plane holds in memory until the queue takes them.",
            [((), self.relay.backlog)],
            (),
        )
        yield gauge(
            "llama_deploy_outbox_failing_topics",
            "Topics whose messages the queue does not take at the moment.",
            [((), self.relay.failing)],
            (),
        )
        yield gauge(
            "llama_deploy_loop_paused_seconds",
            "For how much of the last minute the event loop of the control plane had no turn.",
            [((), self.paused_seconds())],
            (),
        )


def _of_load(load: StoreLoad) -> Iterator[Metric]:
    yield gauge(
        "llama_deploy_tasks",
        "Tasks in the store.",
        [((name, status.value), count) for (name, status), count in sorted(load.tasks.items())],
        ("service", "status"),
    )
    for field, name, text in (
        (
            "stranded",
            "llama_deploy_stranded_tasks",
            "Queued and waiting tasks that no living instance can run.",
        ),
        ("oldest_queued_seconds", "llama_deploy_oldest_queued_seconds", "Age of the oldest queued task."),
        ("slots", "llama_deploy_slots", "How many tasks the living instances can run at the same time."),
        ("slots_used", "llama_deploy_slots_used", "How many attempts they hold."),
    ):
        values = [((service,), float(getattr(each, field))) for service, each in load.backlogs.items()]
        yield gauge(name, text, values, _BY_SERVICE)
    instances = [((name,), load.instances.get(name, 0)) for name in load.backlogs]
    yield gauge("llama_deploy_instances", "Living instances.", instances, _BY_SERVICE)
    suspects = [((name,), load.suspects.get(name, 0)) for name in load.backlogs]
    text = "Tasks that wait to run alone in a process, because two of their processes have died."
    yield gauge("llama_deploy_suspects", text, suspects, _BY_SERVICE)


def _of_sizes(sizes: StoreSizes) -> Iterator[Metric]:
    for name, text, value in (
        ("llama_deploy_store_bytes", "Size of the state store.", sizes.total_bytes),
        ("llama_deploy_store_free_bytes", "Space in the store that is not used.", sizes.free_bytes),
        ("llama_deploy_store_log_bytes", "Size of the write-ahead log.", sizes.log_bytes),
    ):
        if value is not None:
            yield gauge(name, text, [((), value)], ())
