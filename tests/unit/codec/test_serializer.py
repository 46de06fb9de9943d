"""The workflow library stores its ticks and snapshots through the codec, and goes on from them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.plugins.basic import BasicRuntime, JournalRecord
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from workflows.runtime.types.ticks import TickAddEvent, TickStepResult, WorkflowTickAdapter

from llama_deploy.codec import TypedJson, TypedSerializer, TypeRegistry, declared_types
from llama_deploy.errors import SerializationError

PROGRAM = Path(__file__).parent / "programs" / "flow.py"


def run_program(*arguments: str) -> str:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def imported_program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


FOUND = {"answer": "yes", "node": "TextNode", "kept": "TextNode", "seen": ["retrieve"], "words": ["a", "b"]}


def test_a_paused_run_goes_on_in_another_process(tmp_path: Path) -> None:
    file = str(tmp_path / "snapshot.json")
    run_program("pause", file)
    assert json.loads(run_program("resume", file)) == FOUND


async def test_a_run_paused_in_a_script_goes_on_where_it_is_a_module(tmp_path: Path) -> None:
    file = tmp_path / "snapshot.json"
    await asyncio.to_thread(run_program, "pause", str(file))
    module = imported_program("flow_imported_by_a_test")
    try:
        found = await module.resume(json.loads(file.read_text()))
    finally:
        del sys.modules["flow_imported_by_a_test"]
    assert json.loads(json.dumps(found)) == FOUND


class Item(Event):
    node: NodeWithScore


class Done(Event):
    score: float


class Ask(InputRequiredEvent):
    total: float


class Answer(HumanResponseEvent):
    text: str


class Journalled(Workflow):
    """Fans out, collects, fails once, and asks."""

    failures = 0

    @step
    async def fan_out(self, ev: StartEvent) -> list[Item]:  # noqa: ARG002 - the library reads its type
        return [Item(node=NodeWithScore(node=TextNode(text="t"), score=n / 2)) for n in range(3)]

    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(2)))
    async def work(self, ev: Item) -> Done:
        if ev.node.score == 0.5 and not self.failures:
            self.failures += 1
            raise KeyError(ev.node.node.node_id)
        return Done(score=ev.node.score)

    @step
    async def join(self, ctx: Context, evs: list[Done]) -> StopEvent:
        total = sum(ev.score for ev in evs)
        answer = await ctx.wait_for_event(
            Answer, waiter_event=Ask(total=total), requirements={"text": "yes"}, waiter_id="w", timeout=None
        )
        return StopEvent(result=(total, answer))


def serializer_of(flow: Workflow) -> TypedSerializer:
    return TypedSerializer(TypedJson(TypeRegistry(declared_types(flow, [Answer]))))


async def records_until_asked(runtime: BasicRuntime, run_id: str) -> list[JournalRecord]:
    records = []
    async for record in runtime.journal(run_id):
        records.append(record)
        if '"idle_check"' in record.data:
            break
    return records


async def test_a_journal_of_ticks_is_restored() -> None:
    runtime = BasicRuntime()
    serializer = serializer_of(Journalled())
    first = Journalled(runtime=runtime, timeout=None, serializer=serializer)
    handler = first.run()
    records = await records_until_asked(runtime, handler.run_id)
    await handler.cancel_run()

    kinds = set()
    for record in records:
        tick: Any = serializer.deserialize(record.data)
        with serializer.validation_context():
            assert WorkflowTickAdapter.validate_python(tick) is tick
        kinds.add(tick.type)
        if isinstance(tick, TickAddEvent | TickStepResult) and isinstance(tick.event, Item):
            assert type(tick.event.node.node) is TextNode
    assert {"session_start", "add_event", "step_result"} <= kinds
    assert any("builtins" not in record.data and "KeyError" in record.data for record in records)

    again = BasicRuntime()
    second = Journalled(runtime=again, timeout=None, serializer=serializer)
    ctx = again.restore(second, None, records, serializer)
    resumed = second.run(ctx=ctx)
    await resumed.send_event(Answer(text="yes"))
    result: Any = await resumed
    total, answer = result
    assert (total, answer.text) == (1.5, "yes")
    assert second.failures == 0, "a finished step was not run again"


def test_errors_name_the_place_from_the_class_on() -> None:
    class Passages(Event):
        nodes: list[Any]

    serializer = TypedSerializer(TypedJson(TypeRegistry([Passages, NodeWithScore])))
    not_a_node: Any = object()
    passages = Passages(nodes=[NodeWithScore.model_construct(node=not_a_node)])
    with pytest.raises(SerializationError) as caught:
        serializer.serialize(passages)
    assert caught.value.path == "event Passages.nodes[0].node"
    assert str(caught.value).startswith("event Passages.nodes[0].node is a builtins.object")


def test_the_library_finds_classes_through_the_registry_only() -> None:
    serializer = TypedSerializer(TypedJson(TypeRegistry([Answer])))
    tick = {"type": "add_event", "event": {"__is_pydantic": True, "qualified_name": "this.Evil", "value": {}}}
    with serializer.validation_context(), pytest.raises(SerializationError, match=r"this\.Evil"):
        WorkflowTickAdapter.validate_python(tick)
    assert "this" not in sys.modules
