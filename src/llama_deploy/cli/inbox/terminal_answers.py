"""`llamactl run` in a terminal: it asks what its task asks."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import typer

from llama_deploy.cli.error_messages import CommandError, print_error
from llama_deploy.cli.inbox.question_form import ask_in_terminal, describe
from llama_deploy.cli.inbox.questions import printable_block
from llama_deploy.cli.output import note
from llama_deploy.client import Client, TaskHandle
from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.errors import AnswerNotAcceptedError, LlamaDeployError, QuestionClosedError
from llama_deploy.types import TaskEvent, TaskStatus
from llama_deploy.types.questions import Question

_PACE: Final = Backoff(first=0.05, longest=2.0)
"""When to look for questions, after the last event."""


class TerminalAnswers:
    """Asks the questions of a task in the terminal, one after the other, until the task has ended."""

    def __init__(self, client: Client, handle: TaskHandle) -> None:
        self._client = client
        self._handle = handle
        self._looks = 0
        """How often there was nothing to ask since the last event."""
        self._has_happened = asyncio.Event()

    async def on_event(self, event: TaskEvent) -> None:
        """Look for questions soon."""
        del event
        self._looks = 0
        self._has_happened.set()

    async def watch_status(self) -> None:
        """Ask whatever the task asks. Ends when the input ends; cancel it when the task has ended."""
        while True:
            self._looks += 1
            self._has_happened.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PACE.delay(self._looks)):
                    await self._has_happened.wait()
            try:
                await self._ask_all()
            except CommandError as exc:
                print_error(f"{exc}; answer from another terminal with `llamactl inbox`")
                return
            except LlamaDeployError:
                continue  # the call that waits for the result retries, or reports the error

    async def _ask_all(self) -> None:
        if await self._handle.status() is not TaskStatus.WAITING:
            return
        for question in await self._handle.questions():
            await self._ask(question)
            self._looks = 0

    async def _ask(self, question: Question) -> None:
        typer.echo(printable_block(describe(question)), err=True)
        while True:
            event_type, fields = await ask_in_terminal(question, None)
            try:
                await self._client.inbox.answer(question.question_id, fields, event_type=event_type)
            except AnswerNotAcceptedError as exc:
                note(printable_block(str(exc)))
                continue
            except QuestionClosedError as exc:
                note(printable_block(str(exc)))
            return
