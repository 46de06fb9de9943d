"""A desk that asks a researcher, whose process is killed. Run as a program, it is the user of the desk."""

import asyncio
import os
import sys
from pathlib import Path

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import Client
from llama_deploy.workflow import ServiceClient, TaskInfo


class Plan(Event):
    topic: str


class Facts(Event):
    text: str


class Desk(Workflow):
    """Plans, asks the researcher, and writes."""

    @step
    async def plan(self, ev: StartEvent) -> Plan:
        return Plan(topic=ev.topic)

    @step
    async def ask(self, ev: Plan, client: ServiceClient) -> Facts:
        return Facts(text=await client.run("researcher", topic=ev.topic, timeout=300.0))

    @step
    async def write(self, ev: Facts) -> StopEvent:
        return StopEvent(result=f"written: {ev.text}")


class Found(Event):
    topic: str


class Researcher(Workflow):
    """Finds, and reads until it may go on."""

    @step
    async def find(self, ev: StartEvent) -> Found:
        return Found(topic=ev.topic)

    @step
    async def read(self, ev: Found, task: TaskInfo) -> StopEvent:
        Path(f"reading-{task.attempt}.txt").write_text(str(os.getpid()))
        while not Path("go.txt").exists():
            await asyncio.sleep(0.02)
        return StopEvent(result=f"all about {ev.topic}")


async def ask(url: str) -> None:
    """Ask the desk, in a span of the user's own."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    with trace.get_tracer("user").start_as_current_span("user request"):
        async with Client(url) as client:
            print(await client.run("desk", topic="tides", timeout=300.0))
    provider.shutdown()


if __name__ == "__main__":
    asyncio.run(ask(sys.argv[1]))
