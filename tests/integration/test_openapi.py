"""Whatever the OpenAPI documents allow, and much that they do not, gets an answer that they describe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from llama_deploy import ControlPlaneConfig, ControlPlaneServer, SimpleMessageQueueConfig
from llama_deploy.message_queues import SimpleMessageQueueServer
from llama_deploy.types import ServiceDefinition

EXAMPLES = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))

# JSON inside a string, reserved words and printable characters have no form in a schema; the framework
# answers a wrong method without a document for it.
UNDOCUMENTED = [positive_data_acceptance, unsupported_method]


class Servers:
    """Queue and control plane in a thread of their own, because the tests here are blocking."""

    def __init__(self, folder: Path) -> None:
        self.control_plane = ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{folder}/state.db")
        self.queue_url = ""
        self.control_plane_url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            queue = await stack.enter_async_context(
                SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0))
            )
            server = await stack.enter_async_context(
                ControlPlaneServer(queue.local_queue(), config=self.control_plane)
            )
            await server.plane.services.register(ServiceDefinition(service_name="echo"))
            self.queue_url, self.control_plane_url = queue.config.base_url, server.config.url
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("openapi")) as servers:
        yield servers


def test_the_control_plane(servers: Servers) -> None:
    check_all(servers.control_plane_url)


def test_the_queue(servers: Servers) -> None:
    check_all(servers.queue_url)


def check_all(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    results = list(schema.get_all_operations())
    assert results
    for result in results:
        assert isinstance(result, Ok), result
        operation = result.ok()

        @EXAMPLES
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case[Any]) -> None:
            if "wait" in (case.query or {}) or case.path == "/events":  # a feed does not end by itself
                case.query = {**(case.query or {}), "wait": 0}
            case.call_and_validate(timeout=20, excluded_checks=UNDOCUMENTED)

        check()
