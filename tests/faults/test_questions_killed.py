"""Questions are answered by many people at once, while everything around them is killed."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import pytest

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.errors import LlamaDeployError, QuestionClosedError
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program
from llama_deploy.types.questions import Question
from tests.faults.conftest import PROGRAMS, System
from tests.faults.programs.asking import QUESTIONS

pytestmark = pytest.mark.faults

SURVEYS: Final = tuple(f"survey-{number}" for number in range(4))
SERVICES: Final = (*SURVEYS, "talk")
TASKS: Final = 5
"""Of each service."""
CLIENTS: Final = 10
KILLS: Final = 9
PAUSE: Final = 0.5
"""Seconds for which everything is there before the next kill."""
PATIENCE: Final = 300.0


class People:
    """Answers every question twice, each time with another text, in any order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._jobs: list[tuple[str, str]] = []
        self._has_jobs = asyncio.Event()
        self.questions: dict[str, Question] = {}
        self.stored: dict[str, list[str]] = {}
        """The answers of which a client was told that they count, by question."""
        self.refused: dict[str, list[str]] = {}
        """Why answers did not count, by question."""
        self.unfinished = 0

    async def look(self, client: Client) -> None:
        """Find questions until cancelled."""
        while True:
            try:
                found = [question async for question in client.inbox.list()]
            except LlamaDeployError:
                continue
            for question in found:
                if question.question_id not in self.questions:
                    self.questions[question.question_id] = question
                    self._jobs += [(question.question_id, f"{question.question_id} {n}") for n in range(2)]
                    self.unfinished += 2
                    self._has_jobs.set()
            await asyncio.sleep(0.05)

    async def answer(self, client: Client) -> None:
        """Answer until cancelled."""
        while True:
            while not self._jobs:
                self._has_jobs.clear()
                await self._has_jobs.wait()
            question_id, text = self._jobs.pop(self._random.randrange(len(self._jobs)))
            try:
                await client.inbox.answer(question_id, {"text": text})
            except QuestionClosedError as exc:
                self.refused.setdefault(question_id, []).append(str(exc))
            else:
                self.stored.setdefault(question_id, []).append(text)
            self.unfinished -= 1


async def kill(system: System, client: Client, parts: list[Program], seed: int) -> None:
    """Kill and restart one part after the other."""
    choice = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(KILLS):
        part = choice.choice(parts)
        part.kill()
        part.start()
        for name in SERVICES:
            await system.instances(client, 2, name)
        await asyncio.sleep(PAUSE)


@pytest.mark.timeout(PATIENCE + 60)
async def test_each_of_500_questions_is_counted_once(system: System) -> None:
    system.env["LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT"] = "0.3"
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "2"
    targets = [f"{name}={PROGRAMS / 'asking.py'}:{name.partition('-')[0]}" for name in SERVICES]
    system.start("core.py", "message_queue")
    control_plane = system.start("core.py", "control_plane")
    workers = [system.worker(*targets) for _ in range(2)]
    people = People(seed=11)
    async with asyncio.timeout(PATIENCE), system.client(timeout=PATIENCE) as client:
        for name in SERVICES:
            await system.instances(client, 2, name)
        handles = [await client.submit(name) for name in SERVICES for _ in range(TASKS)]
        clients = [system.client(timeout=PATIENCE) for _ in range(CLIENTS)]
        background = [
            asyncio.create_task(each)
            for each in (
                people.look(client),
                kill(system, client, [control_plane, *workers], seed=12),
                *(people.answer(each) for each in clients),
            )
        ]
        try:
            results = await asyncio.gather(*(handle.result() for handle in handles))
            await eventually(lambda: not people.unfinished, seconds=PATIENCE)
        finally:
            failed = [each.exception() for each in background if each.done() and not each.cancelled()]
            for each in background:
                each.cancel()
            await asyncio.gather(*background, *(each.close() for each in clients), return_exceptions=True)
        assert not any(failed)
    check(people, handles, results)


def check(people: People, handles: list[TaskHandle], results: list[Any]) -> None:
    count = len(SERVICES) * TASKS * QUESTIONS
    assert len(people.questions) == count
    lost = {name: why for name, why in people.refused.items() if name not in people.stored}
    assert not lost, "no answer counts"
    assert {len(texts) for texts in people.stored.values()} == {1}
    assert {len(reasons) for reasons in people.refused.values()} == {1}
    assert len(people.refused) == count
    expected = {
        (question.task_id, question.prompt["number"]): people.stored[question_id][0]
        for question_id, question in people.questions.items()
    }
    got = {
        (handle.task_id, number): text
        for handle, heard in zip(handles, results, strict=True)
        for number, text in heard
    }
    assert got == expected
    assert [len(heard) for heard in results] == [QUESTIONS] * len(handles)
