"""A service that speaks the protocol of Amazon SQS and answers what a test tells it to."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Refusal(Exception):  # noqa: N818 - it is an answer
    """An answer that is an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class ScriptedSqs:
    """Takes every message and has none, until told otherwise. Use it with `async with`."""

    def __init__(self) -> None:
        self.endpoint_url = ""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """The operations that were asked for, with their parameters."""
        self.answers: dict[str, Answer] = {
            "GetQueueUrl": lambda asked: {"QueueUrl": f"{self.endpoint_url}/1/{asked['QueueName']}"},
            "SendMessageBatch": lambda asked: {"Successful": [accepted(each) for each in asked["Entries"]]},
        }
        self._runner: web.AppRunner | None = None

    def entries(self, operation: str) -> list[list[str]]:
        """Return the ids in the requests of a batch operation."""
        return [
            [each["Id"] for each in asked["Entries"]] for name, asked in self.requests if name == operation
        ]

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint_url = "http://127.0.0.1:{1}".format(*self._runner.addresses[0])
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        asked = json.loads(await request.text())
        self.requests.append((operation, asked))
        try:
            body, status = self._body(operation, asked), 200
        except Refusal as refusal:
            body, status = {"__type": f"com.amazonaws.sqs#{refusal.code}", "message": "no"}, refusal.status
        return web.json_response(body, status=status, content_type="application/x-amz-json-1.0")

    def _body(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        answer = self.answers.get(operation)
        return {} if answer is None else answer(asked)


def accepted(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict on an entry that is taken."""
    return {"Id": entry["Id"], "MessageId": "message"}


def refused(entry: dict[str, Any], code: str, *, by_sender: bool) -> dict[str, Any]:
    """Return the verdict on an entry that is not taken."""
    return {"Id": entry["Id"], "Code": code, "Message": "no", "SenderFault": by_sender}
