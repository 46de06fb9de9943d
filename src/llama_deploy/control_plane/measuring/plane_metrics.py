"""What a control plane counts and times while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from llama_deploy.interceptors import (
    AcceptCall,
    AttemptLoss,
    ControlPlaneInterceptor,
    DispatchCall,
    TaskEnd,
)
from llama_deploy.measures import OTHER, counter, histogram
from llama_deploy.messages import QueueMessage

_BY_SERVICE = ("service",)


class PlaneMetrics(ControlPlaneInterceptor):
    """Counts and times tasks. Its series are in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._submit = histogram(
            registry,
            "llama_deploy_submit_seconds",
            "Time from a submission until it is durable. Those that are refused have the service `_other`.",
            _BY_SERVICE,
        )
        self._publish = histogram(
            registry,
            "llama_deploy_broker_publish_seconds",
            "Time until the queue has taken the message of an attempt.",
            _BY_SERVICE,
        )
        self._publish_errors = counter(
            registry,
            "llama_deploy_broker_errors",
            "Attempts that the queue has not taken; they are published again.",
            _BY_SERVICE,
        )
        self._queue = histogram(
            registry,
            "llama_deploy_queue_seconds",
            "Time from the acceptance of a task to its first claim, observed at its end.",
            _BY_SERVICE,
        )
        self._run = histogram(
            registry,
            "llama_deploy_run_seconds",
            "Time from the first claim of a task to its end, waiting included.",
            _BY_SERVICE,
        )
        self._whole = histogram(
            registry,
            "llama_deploy_task_seconds",
            "Time from the acceptance of a task to its end.",
            _BY_SERVICE,
        )
        self._ended = counter(
            registry, "llama_deploy_tasks_ended", "Tasks that have ended.", ("service", "status")
        )
        self._attempts = counter(
            registry, "llama_deploy_attempts", "Attempts of tasks that have ended.", _BY_SERVICE
        )
        self._lost = counter(
            registry,
            "llama_deploy_attempts_lost",
            "Attempts that ended with their process, its lease, or without its knowledge.",
            _BY_SERVICE,
        )
        self._charges = counter(
            registry,
            "llama_deploy_charges",
            "Deaths of processes that were charged to a task.",
            _BY_SERVICE,
        )
        self._report = histogram(
            registry,
            "llama_deploy_report_seconds",
            "Time from the publication of streamed events, or of an outcome, until it is stored.",
            ("action",),
        )
        self._store = histogram(
            registry,
            "llama_deploy_store_transaction_seconds",
            "Time of a transaction, until it is durable. It may have the writes of many requests.",
            (),
        ).of()
        self._store_errors = counter(
            registry, "llama_deploy_store_errors", "Transactions that have failed.", ()
        ).of()

    @contextmanager
    def submit(self, call: AcceptCall) -> Iterator[None]:
        """See `ControlPlaneInterceptor`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            # What is refused may name services that do not exist, and there may be many such names.
            name = OTHER if call.status is None else call.service_name
            self._submit.of(name).observe(time.perf_counter() - began)

    @contextmanager
    def dispatch(self, call: DispatchCall) -> Iterator[None]:
        """See `ControlPlaneInterceptor`."""
        service = call.message.type
        began = time.perf_counter()
        try:
            yield
        except Exception:
            self._publish_errors.of(service).inc()
            raise
        self._publish.of(service).observe(time.perf_counter() - began)

    def ended(self, end: TaskEnd) -> None:
        """See `ControlPlaneInterceptor`."""
        name = end.service_name
        self._ended.of(name, end.status.value).inc()
        self._attempts.of(name).inc(end.attempts)
        if end.finished_at is None:
            return
        self._whole.of(name).observe((end.finished_at - end.created_at).total_seconds())
        if end.started_at is not None:
            self._queue.of(name).observe((end.started_at - end.created_at).total_seconds())
            self._run.of(name).observe((end.finished_at - end.started_at).total_seconds())

    def lost(self, loss: AttemptLoss) -> None:
        """See `ControlPlaneInterceptor`."""
        self._lost.of(loss.service_name).inc()
        if loss.is_charged:
            self._charges.of(loss.service_name).inc()

    def reported(self, message: QueueMessage) -> None:
        """A report that has come over the queue is stored."""
        published = message.stats.publish_time
        if published is None or message.action is None:
            return
        with suppress(ValueError, TypeError):  # a queue of others may write the time as it likes
            lag = datetime.now(UTC) - datetime.fromisoformat(published)
            self._report.of(message.action.value).observe(max(0.0, lag.total_seconds()))

    def transacted(
        self,
        seconds: float,
        failed: bool,  # noqa: FBT001 - called with both by position
    ) -> None:
        """A transaction has ended."""
        if failed:
            self._store_errors.inc()
        else:
            self._store.observe(seconds)
