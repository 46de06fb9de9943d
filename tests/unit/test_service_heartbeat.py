"""The thread that keeps the lease."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.errors import UnavailableError
from llama_deploy.running_task import TaskInfo, running_task
from llama_deploy.services.run.steps.step_guard import guard_steps
from llama_deploy.services.worker import heartbeat as heartbeat_module
from llama_deploy.services.worker.heartbeat import HeartbeatThread
from llama_deploy.types import BlockedStep
from llama_deploy.types.instance_protocol import Heartbeat, HeartbeatReply


class ControlPlaneDouble:
    """Stands for the control plane: counts the heartbeats, and is away when the test says so."""

    def __init__(self) -> None:
        self.beats: list[float] = []
        self.away = False
        self.heard: list[datetime | None] = []
        self.answers: list[datetime] = []
        self.fault: Exception | None = None
        self.threads: set[int] = set()
        self.blocked_seconds: list[float] = []
        self.blocked: list[BlockedStep] = []

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        assert heartbeat.instance_id == "instance"
        self.threads.add(threading.get_ident())
        self.beats.append(time.monotonic())
        self.blocked_seconds.append(heartbeat.blocked_seconds)
        self.blocked += heartbeat.blocked
        self.heard.append(heartbeat.heard_at)
        if self.away:
            raise UnavailableError("away")
        if self.fault is not None:
            raise self.fault
        self.answers.append(datetime.now(UTC))
        return HeartbeatReply(at=self.answers[-1])


def thread(
    plane: ControlPlaneDouble,
    on_reply: Callable[[HeartbeatReply, float], None],
    *,
    blocked_limit: float = 60.0,
) -> HeartbeatThread:
    def beat(heard_at: datetime | None) -> HeartbeatReply:
        blocked = beating.blocked
        return plane.beat(
            Heartbeat(
                instance_id="instance",
                heard_at=heard_at,
                blocked_seconds=0.0 if blocked is None else blocked.seconds,
                blocked=[] if blocked is None else [blocked],
            )
        )

    beating = HeartbeatThread(
        beat=beat,
        on_reply=on_reply,
        interval=0.02,
        blocked_limit=blocked_limit,
        name="service",
    )
    return beating


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - another thread changes what is waited for
            await asyncio.sleep(0.002)


async def test_heartbeats_come_from_another_thread_and_replies_into_the_loop() -> None:
    plane, replies = ControlPlaneDouble(), list[int]()
    beating = thread(plane, lambda *_: replies.append(threading.get_ident()))
    beating.start()
    await until(lambda: len(replies) >= 3)
    await beating.close()
    await beating.close()
    assert set(replies) == {threading.get_ident()}
    assert threading.get_ident() not in plane.threads
    assert plane.heard == [None, *plane.answers[:-1]]
    count = len(plane.beats)
    await asyncio.to_thread(time.sleep, 0.1)  # Two intervals: nothing may beat any more.
    assert len(plane.beats) == count


async def test_heartbeats_go_on_while_the_loop_is_blocked_but_not_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "_PATIENCE", 0.1)
    caplog.set_level(logging.INFO)
    plane = ControlPlaneDouble()
    beating = thread(plane, lambda *_: None, blocked_limit=0.4)
    beating.start()
    await until(lambda: len(plane.beats) >= 2)
    begun = time.monotonic()
    time.sleep(2.5)  # noqa: ASYNC251 - what the test is about
    during = [beat - begun for beat in plane.beats if beat > begun]
    assert len(during) >= 5
    assert max(during) < 2.0, "silent beyond the limit"
    assert plane.blocked_seconds[0] == 0.0
    assert 0.1 <= max(plane.blocked_seconds) < 2.0
    count = len(plane.beats)
    await until(lambda: len(plane.beats) > count and "is free again" in caplog.text)
    await beating.close()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert __file__ in warnings[0].getMessage()
    assert {(each.task_id, each.step) for each in plane.blocked} == {(None, None)}
    assert plane.blocked[0].place.startswith(f"{__file__}:")


class Blocking(Workflow):
    @step
    async def think(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - the library asks for it
        time.sleep(0.5)  # noqa: ASYNC251 - what the test is about
        return StopEvent()


async def test_a_blocked_loop_names_the_step_and_its_task(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "_PATIENCE", 0.1)
    plane, workflow = ControlPlaneDouble(), Blocking()
    guard_steps(workflow)
    beating = thread(plane, lambda *_: None)
    beating.start()
    await until(lambda: len(plane.beats) >= 2)
    token = running_task.set(TaskInfo("t1", "s1", "service", 1))
    await workflow.run()
    running_task.reset(token)
    await beating.close()
    assert {(each.task_id, each.step) for each in plane.blocked} == {("t1", "think")}
    assert plane.blocked[-1].seconds > plane.blocked[0].seconds >= 0.1
    assert "by the step 'think' of task t1 at " in caplog.text


async def test_an_absent_control_plane_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plane = ControlPlaneDouble()
    plane.away = True
    replies: list[HeartbeatReply] = []
    beating = thread(plane, lambda reply, _: replies.append(reply))
    beating.start()
    await until(lambda: len(plane.beats) >= 4)
    assert not replies
    plane.away = False
    await until(lambda: bool(replies))
    await beating.close()
    assert caplog.text.count("does not answer the heartbeats") == 1
    assert caplog.text.count("again") == 1


async def test_an_unforeseen_error_does_not_end_the_heartbeats(caplog: pytest.LogCaptureFixture) -> None:
    plane, replies = ControlPlaneDouble(), list[HeartbeatReply]()
    plane.fault = RuntimeError("a fault of ours")
    beating = thread(plane, lambda reply, _: replies.append(reply))
    beating.start()
    await until(lambda: len(plane.beats) >= 3)
    plane.fault = None
    await until(lambda: bool(replies))
    await beating.close()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "a fault of ours" in record.getMessage()
    assert record.exc_info is not None, "its traceback tells where"
