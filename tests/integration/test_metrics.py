"""What `/metrics` and the backlog of a service show."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.parser import text_string_to_metric_families
from workflows import Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    LocalStack,
    SimpleMessageQueueConfig,
    WorkflowServiceConfig,
)
from llama_deploy.deploy import HostedWorkflow
from llama_deploy.errors import ServiceNotFoundError, TaskFailedError
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.instance_protocol import ClaimRequest
from tests.integration.in_process import running_stack

OPEN = asyncio.Event()


class Adder(Workflow):
    @step
    async def add(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.a + ev.b)


class Fails(Workflow):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise RuntimeError("on purpose")


class Holds(Workflow):
    @step
    async def hold(self, ev: StartEvent) -> StopEvent:
        await OPEN.wait()
        return StopEvent()


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step
    async def hear(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent()


def config(name: str, **settings: Any) -> WorkflowServiceConfig:
    return WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=name, **settings)


async def start(*hosted: HostedWorkflow, **settings: Any) -> LocalStack:
    return await LocalStack.start(
        hosted,
        control_plane_config=ControlPlaneConfig(port=0, state_store_uri="sqlite:///:memory:", **settings),
        message_queue_config=SimpleMessageQueueConfig(port=0),
    )


async def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        text = await answer.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str
) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def test_tasks_are_counted_and_timed_from_submission_to_end() -> None:
    stack = await start(HostedWorkflow(Adder, config("adder")), HostedWorkflow(Fails, config("fails")))
    async with stack, Client(stack.control_plane_url) as client:
        for number in range(3):
            assert await client.run("adder", a=number, b=1) == number + 1
        with pytest.raises(TaskFailedError):
            await client.run("fails")

        async def are_counted() -> bool:
            samples = await scrape(stack.control_plane_url)
            return value(samples, "llama_deploy_worker_attempts_total", service="fails", status="failed") == 1

        await eventually(are_counted, seconds=60)
        samples = await scrape(stack.control_plane_url)
    for name in ("submit", "broker_publish", "queue", "run", "task"):
        assert value(samples, f"llama_deploy_{name}_seconds_count", service="adder") == 3, name
    assert value(samples, "llama_deploy_tasks_ended_total", service="adder", status="succeeded") == 3
    assert value(samples, "llama_deploy_tasks_ended_total", service="fails", status="failed") == 1
    assert value(samples, "llama_deploy_attempts_total", service="adder") == 3
    assert value(samples, "llama_deploy_tasks", service="adder", status="succeeded") == 3
    assert value(samples, "llama_deploy_worker_attempts_total", service="adder", status="succeeded") == 3
    assert value(samples, "llama_deploy_worker_step_seconds_count", service="adder", step="add") == 3
    assert value(samples, "llama_deploy_worker_step_errors_total", service="fails", step="fail") == 1
    assert value(samples, "llama_deploy_worker_reports_total", service="adder", action="completed_task") == 3
    assert (value(samples, "llama_deploy_store_transaction_seconds_count") or 0) > 0
    assert value(samples, "llama_deploy_store_errors_total") == 0
    assert value(samples, "llama_deploy_store_up") == 1
    assert value(samples, "llama_deploy_instances", service="adder") == 1
    assert value(samples, "llama_deploy_worker_slots", service="adder") == 8
    assert value(samples, "process_start_time_seconds") is not None


async def test_the_metrics_of_the_users_own_code_are_shown_too() -> None:
    own = Counter("own_tokens", "Tokens of models.", ["model"])
    try:
        own.labels("small").inc(17)
        async with await start() as stack:
            samples = await scrape(stack.control_plane_url)
    finally:
        REGISTRY.unregister(own)
    assert value(samples, "own_tokens_total", model="small") == 17


async def test_without_metrics_only_what_the_store_knows_is_shown() -> None:
    hosted = HostedWorkflow(Adder, config("adder", metrics=False))
    async with await start(hosted, metrics=False) as stack, Client(stack.control_plane_url) as client:
        assert await client.run("adder", a=1, b=1) == 2
        samples = await scrape(stack.control_plane_url)
    assert value(samples, "llama_deploy_tasks", service="adder", status="succeeded") == 1
    assert value(samples, "llama_deploy_task_seconds_count", service="adder") is None
    assert not [name for name, _ in samples if name.startswith("llama_deploy_worker_")]


async def test_names_of_services_that_do_not_exist_are_no_label_values() -> None:
    async with await start(HostedWorkflow(Adder, config("adder"))) as stack:
        async with Client(stack.control_plane_url) as client:
            for number in range(3):
                with pytest.raises(ServiceNotFoundError):
                    await client.submit(f"nobody-{number}")
            await client.run("adder", a=1, b=2)
        samples = await scrape(stack.control_plane_url)
    name = "llama_deploy_submit_seconds_count"
    assert value(samples, name, service="adder") == 1
    assert value(samples, name, service="_other") == 3
    assert not [labels for _, labels in samples if "nobody" in str(labels)]


async def backlog(url: str, name: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/services/{name}/backlog") as answer:
        assert answer.status == 200
        found: dict[str, Any] = await answer.json()
    return found


async def test_the_backlog_tells_what_waits_and_what_could_be_taken() -> None:
    OPEN.clear()
    holds = HostedWorkflow(Holds, config("holds", max_concurrent_tasks=2, drain_timeout=0.0))
    asks = HostedWorkflow(Asks, config("asks", idle_timeout=0.0))
    async with await start(holds, asks) as stack, Client(stack.control_plane_url) as client:
        url = stack.control_plane_url
        for _ in range(5):
            await client.submit("holds")
        await client.submit("asks")

        async def has_settled() -> bool:
            busy, asking = await backlog(url, "holds"), await backlog(url, "asks")
            return (busy["running"], busy["queued"], asking["waiting"]) == (2, 3, 1)

        await eventually(has_settled, seconds=60)
        found = await backlog(url, "holds")
        assert found.pop("oldest_queued_seconds") > 0
        assert found == {
            "queued": 3,
            "running": 2,
            "waiting": 0,
            "stranded": 0,
            "slots": 2,
            "slots_used": 2,
        }
        asking = await backlog(url, "asks")
        assert (asking["slots"], asking["slots_used"], asking["oldest_queued_seconds"]) == (8, 0, 0)
        samples = await scrape(url)
        assert value(samples, "llama_deploy_slots_used", service="holds") == 2
        assert (value(samples, "llama_deploy_oldest_queued_seconds", service="holds") or 0) > 0


@pytest.mark.parametrize("name", ["nobody", "with%20space", "a%2Fb"])
async def test_the_backlog_of_a_service_that_may_register_later_is_zero(name: str) -> None:
    async with await start() as stack:
        found = await backlog(stack.control_plane_url, name)
    assert found == dict.fromkeys(
        ("queued", "running", "waiting", "stranded", "oldest_queued_seconds", "slots", "slots_used"), 0
    )


async def test_an_attempt_that_is_lost_is_counted() -> None:
    async with running_stack(lease_seconds=0.5) as stack:
        plane = stack.plane
        await plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
        task_id = await stack.submit("echo")
        (reply,) = await plane.attempts.claim([ClaimRequest(task_id=task_id, attempt=1, instance_id="one")])
        assert reply.granted

        async def is_counted() -> bool:
            return 'llama_deploy_attempts_lost_total{service="echo"} 1.0' in await plane.metrics.text()

        await eventually(is_counted, seconds=60)  # the instance sends no heartbeats
        # It was the only task of its process.
        assert 'llama_deploy_charges_total{service="echo"} 1.0' in await plane.metrics.text()
