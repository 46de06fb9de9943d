"""What a worker counts and times, and the values that are read when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from llama_deploy.interceptors import Around, AttemptCall, PublishCall, StepCall, WorkerInterceptor
from llama_deploy.measures import Timing, counter, gauge, histogram, text_of
from llama_deploy.workflow_library import WaitingForEvent

_OF_SERVICE = ("service",)


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is."""

    slots: int
    slots_used: int
    """Attempts under way, without those that only wait in memory."""
    attempts: int
    """All attempts in memory."""
    held: int
    """Attempts in the ledger: those, and the ended ones whose outcomes are not confirmed."""
    unconfirmed: int
    """Outcomes that the control plane has not confirmed."""
    blocked_seconds: float
    """For how long the event loop has been blocked. 0: it is not."""
    loop_lag_seconds: float
    """How long the event loop took to take its turn when a heartbeat asked it last."""


class WorkerMetrics(WorkerInterceptor):
    """Counts and times the work of one service in this process. Its series are in a registry of its own.

    Args:
        service_name: The service.
    """

    def __init__(self, service_name: str) -> None:
        registry = self._registry = CollectorRegistry()
        self._name = service_name
        name = service_name
        self._attempts = counter(
            registry,
            "llama_deploy_worker_attempts",
            "Attempts that have ended here. `waiting`: parked. `given_up`: taken over or handed back.",
            ("service", "status"),
        )
        self._attempt = histogram(
            registry,
            "llama_deploy_worker_attempt_seconds",
            "Time from the claim of an attempt until its outcome is reported.",
            _OF_SERVICE,
        ).of(name)
        self._step = histogram(
            registry, "llama_deploy_worker_step_seconds", "Time that steps run.", ("service", "step")
        )
        self._step_errors = counter(
            registry, "llama_deploy_worker_step_errors", "Steps that raised an error.", ("service", "step")
        )
        self._publish = histogram(
            registry,
            "llama_deploy_worker_publish_seconds",
            "Time until the queue, or the control plane, has taken a report. Retries are included.",
            _OF_SERVICE,
        ).of(name)
        self._reports = counter(
            registry, "llama_deploy_worker_reports", "Reports to the control plane.", ("service", "action")
        )

    @contextmanager
    def attempt(self, call: AttemptCall) -> Iterator[None]:
        """See `WorkerInterceptor`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            status = "given_up" if call.status is None else call.status.value
            self._attempts.of(self._name, status).inc()
            self._attempt.observe(time.perf_counter() - began)

    @contextmanager
    def step(self, call: StepCall) -> Iterator[None]:
        """See `WorkerInterceptor`."""
        began = time.perf_counter()
        try:
            yield
        except WaitingForEvent:
            raise  # it begins again
        except Exception:
            self._step_errors.of(self._name, call.step_name).inc()
            self._step.of(self._name, call.step_name).observe(time.perf_counter() - began)
            raise
        self._step.of(self._name, call.step_name).observe(time.perf_counter() - began)

    def publish(self, call: PublishCall) -> Around:
        """See `WorkerInterceptor`."""
        action = call.message.action
        self._reports.of(self._name, "" if action is None else action.value).inc()
        return Timing(self._publish.observe)

    def text(self, load: WorkerLoad | None) -> str:
        """Return the metrics in the text format of Prometheus. Thread-safe.

        Args:
            load: How busy the worker is. None: it does not work at the moment.
        """
        gauges = []
        if load is not None:
            gauges = [
                gauge(
                    f"llama_deploy_worker_{name}",
                    text,
                    [((self._name,), float(getattr(load, name)))],
                    _OF_SERVICE,
                )
                for name, text in _GAUGES.items()
            ]
        return text_of(self._registry, gauges)


_GAUGES = {
    "slots": "How many tasks this instance works on at the same time.",
    "slots_used": "Attempts under way, without those that only wait in memory.",
    "attempts": "Attempts in memory.",
    "held": "Attempts in the ledger: those in memory, and ended ones whose outcomes are not confirmed.",
    "unconfirmed": "Outcomes that the control plane has not confirmed.",
    "blocked_seconds": "For how long the event loop has been blocked; 0 if it is not.",
    "loop_lag_seconds": "How long the event loop took to take its turn when the last heartbeat asked it.",
}
