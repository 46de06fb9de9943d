"""What is of another form in the body of a documented route is refused over HTTP: by routes and shortcuts.

The unit tests look at models. Here, the documents say what requests have, so that no model is left out.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple

import pytest

from llama_deploy.errors import InvalidRequestError
from llama_deploy.message_queues import SimpleMessageQueueConfig, SimpleMessageQueueServer
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.in_process import running_stack
from tests.unit.test_exact_requests import NOT_READ, WRONG, Corruption
from tests.unit.test_wire_models import Example

REFERENCE: Final = "#/components/schemas/"


class Operation(NamedTuple):
    """A route as a document describes it."""

    method: str
    path: str
    description: dict[str, Any]

    @property
    def url(self) -> str:
        return re.sub(r"\{\w+\}", "x", self.path)

    @property
    def body(self) -> dict[str, Any] | None:
        """The schema of its body. None: it takes none."""
        content = self.description.get("requestBody", {}).get("content", {})
        return content["application/json"]["schema"] if content else None


class Document:
    """The OpenAPI document of a server, and a connection to the server."""

    def __init__(self, http: HttpConnection, document: dict[str, Any]) -> None:
        self.http = http
        self.schemas: dict[str, Any] = document["components"]["schemas"]
        self.operations = [
            Operation(method.upper(), path, description)
            for path, methods in document["paths"].items()
            for method, description in methods.items()
        ]

    def models(self, schema: Any) -> Iterator[str]:
        """Yield the names of the models in a schema, those within others included."""
        if isinstance(schema, dict):
            name = str(schema.get("$ref", "")).removeprefix(REFERENCE)
            if name:
                yield re.sub("-(Input|Output)$", "", name)
                yield from self.models(self.schemas[name])
            schema = list(schema.values())
        if isinstance(schema, list):
            for each in schema:
                yield from self.models(each)

    async def refusal(self, request: HttpRequest) -> str:
        """Return why a request is refused."""
        with pytest.raises(InvalidRequestError) as caught:
            await self.http.request(request)
        return str(caught.value)


@pytest.fixture
async def documents() -> AsyncIterator[list[Document]]:
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)))
        control_plane = await stack.enter_async_context(running_stack())
        documents = []
        for url in (queue.config.base_url, control_plane.server.config.url):
            http = HttpConnection(url)
            stack.push_async_callback(http.close)
            documents.append(Document(http, await http.request(HttpRequest("GET", "/openapi.json"))))
        yield documents


async def test_no_request_has_a_model_that_may_be_lax(documents: list[Document]) -> None:
    read = {name for each in documents for route in each.operations for name in each.models(route.body)}
    assert {"Settlement", "Heartbeat", "BlockedStep", "TopicOptions", "NewApiKey"} <= read
    assert not read & NOT_READ


async def test_scalars_of_another_form_are_refused_in_every_body(documents: list[Document]) -> None:
    tried = set()
    for document in documents:
        for route in document.operations:
            if route.body is None:
                continue
            example = Example(document.schemas, newer=False).of(route.body)
            for place, wrong in Corruption(document.schemas).of(route.body, example):
                reason = await document.refusal(HttpRequest(route.method, route.url, json=wrong))
                assert f"{'.'.join(['body', *place])}: Input should be " in reason, (route.path, wrong)
                tried.add((route.path, *place))
    assert {
        ("/deliveries/settle", "0", "seconds"),
        ("/instances/heartbeat", "slots"),
        ("/instances/heartbeat", "heard_at"),
        ("/attempts/journal", "0", "step_ended"),
        ("/tasks", "max_attempts"),
    } <= tried


async def test_times_of_another_form_are_refused_in_every_query(documents: list[Document]) -> None:
    tried = set()
    for document in documents:
        for route in document.operations:
            for parameter in route.description.get("parameters", []):
                schema, name = parameter["schema"], parameter["name"]
                if not any(each.get("format") == "date-time" for each in schema.get("anyOf", [schema])):
                    continue
                tried.add((route.path, parameter["in"], name))
                for wrong in filter(lambda each: isinstance(each, str), WRONG["date-time"]):
                    reason = await document.refusal(HttpRequest("GET", route.url, params={name: wrong}))
                    assert f"query.{name}: Input should be a date and a time" in reason
    assert tried == {
        *(("/tasks", "query", name) for name in ("created_after", "created_before")),
        *(("/audit", "query", name) for name in ("after", "before")),
    }


async def test_integers_outside_bodies_have_limits_that_a_column_holds(documents: list[Document]) -> None:
    tried = 0
    for document in documents:
        for route in document.operations:
            for parameter in route.description.get("parameters", []):
                for schema in parameter["schema"].get("anyOf", [parameter["schema"]]):
                    if schema.get("type") == "integer":
                        tried += 1
                        assert -(2**63) <= schema["minimum"] <= schema["maximum"] < 2**63, parameter
    assert tried > 10
