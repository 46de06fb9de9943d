"""Branches: a router decides which way a question takes, and one branch may go back."""

import random
from typing import Literal

from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Math(Event):
    question: str


class Talk(Event):
    question: str
    tone: Literal["kind", "short"]


class Reroute(Event):
    question: str


class Router(Workflow):
    @step
    async def route(self, ev: StartEvent | Reroute) -> Math | Talk:
        if any(letter.isdigit() for letter in ev.question):
            return Math(question=ev.question)
        return Talk(question=ev.question, tone="kind")

    @step
    async def calculate(self, ev: Math) -> StopEvent | Reroute:
        await call("router/calculate")
        if "+" not in ev.question:
            return Reroute(question=ev.question.translate(str.maketrans("", "", "0123456789")))
        return StopEvent(result=sum(int(each) for each in ev.question.split("+")))

    @step
    async def talk(self, ev: Talk) -> StopEvent:
        await call("router/talk")
        # The same question always gets the same answer.
        greeting = random.Random(ev.question).choice(["Well,", "Indeed,", "Yes,"])  # noqa: S311 - no secret
        return StopEvent(result=f"{greeting} {ev.question.strip()} ({ev.tone})")
