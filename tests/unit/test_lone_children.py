"""Children of a supervisor that run suspects alone: how they are started, and what health says of them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread

import pytest

from llama_deploy.supervisor.child_process import ChildCommand, ChildProcess, Instance
from llama_deploy.supervisor.health_board import checks_of
from llama_deploy.supervisor.silence import Silence
from llama_deploy.supervisor.start_backoff import StartBackoff
from llama_deploy.supervisor.supervisor import Stop, Supervisor

SLEEPS = ChildCommand(["sleep", "60"])
DEFINITION = {"service_name": "s"}
CHILD = """
import json, os, socket, time
place = json.loads(os.environ["LLAMA_DEPLOY_SUPERVISOR"])
if place["alone"]:
    os._exit(3)
channel = socket.socket(fileno=place["channel"])
def say(**message):
    channel.sendall(json.dumps(message).encode() + b"\\n")
say(hello={"connection": {}, "drain_timeout": 0.0, "blocked_limit": 60.0})
say(ready=[])
while True:
    say(alone="s")
    time.sleep(0.02)
"""
"""A child that asks for a lone one all the time. That one ends before it is ready."""


@pytest.fixture
def children() -> Iterator[list[ChildProcess]]:
    """Two ordinary children that work, and a lone one that has just been started."""
    with ExitStack() as stack:
        found = []
        for alone in (None, None, "s"):
            child = ChildProcess.start(SLEEPS, is_first=False, alone=alone)
            stack.callback(child.close)
            stack.callback(child.process.wait)
            stack.callback(child.process.kill)
            found.append(child)
        for child in found[:2]:
            join(child)
        yield found


def join(child: ChildProcess) -> None:
    child.services = [DEFINITION]
    child.instances["i"] = Instance({}, Silence(60.0))


def failing(children: list[ChildProcess]) -> list[str]:
    checks = checks_of(children, processes=2, is_stopping=False, now=time.monotonic())
    return [name for name, check in checks.items() if not check.ok]


def test_a_lone_child_does_not_stand_in_for_an_ordinary_one(children: list[ChildProcess]) -> None:
    first, _, lone = children
    join(lone)
    assert failing([first, lone]) == ["processes"]
    assert failing(children) == []


def test_a_lone_child_that_starts_or_ends_fails_no_check(children: list[ChildProcess]) -> None:
    *_, lone = children
    assert failing(children) == []
    lone.services = [DEFINITION]
    assert failing(children) == []
    join(lone)
    lone.is_ending = True
    assert failing(children) == []
    lone.kill("was blocked for 60 s")
    assert failing(children) == []


def test_a_lone_child_that_is_blocked_fails_its_check(children: list[ChildProcess]) -> None:
    *_, lone = children
    join(lone)
    lone.instances["i"].problems = ["the control plane does not answer"]
    assert failing(children) == [f"process {lone.pid}"]


def test_the_pauses_between_starts_grow_until_one_succeeds() -> None:
    backoff = StartBackoff()
    assert backoff.may_start(10.0)
    assert [backoff.failed(10.0) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert not backoff.may_start(39.9)
    assert backoff.may_start(40.0)
    backoff.succeeded()
    assert backoff.may_start(10.0)
    assert backoff.failed(10.0) == 0.5


def test_a_lone_child_that_ends_before_it_is_ready_is_not_started_again_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    supervisor = Supervisor(ChildCommand([sys.executable, "-S", "-E", "-c", CHILD]), processes=1)
    running = Thread(target=supervisor.run)
    running.start()

    def starts() -> list[float]:
        return [each.created for each in caplog.records if "alone, one at a time" in each.getMessage()]

    give_up_at = time.monotonic() + 60
    while len(starts()) < 3 and time.monotonic() < give_up_at:
        time.sleep(0.02)
    supervisor.request(Stop.KILL)
    running.join(60)
    first, second, third = starts()[:3]
    assert second - first >= 0.5
    assert third - second >= 1.0
    assert "the next one is started in 1 s at the earliest, because it was not ready yet" in caplog.text
