"""Every route says how it treats tenants, and which ids its requests have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pydantic_core
import pytest

from llama_deploy import (
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.types.callers import ANONYMOUS, Caller
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import (
    CONTROL_PLANE_ACCESS,
    QUEUE_ACCESS,
    SERVICE_ACCESS,
    IdKind,
    Requirement,
    Tenancy,
)
from llama_deploy.web.edge.owned_ids import ids_of, with_keys
from tests.integration.test_edge import send

NAMES: Final = {"session", "parent", "q", "id"}
"""Names of ids that do not end in `_id`."""
OTHERS: Final = {
    *("agent_id", "instance_id", "process_id"),  # of services, for operators and in events
    "bulk_id",  # part of ids that are made in the tenant
    "key_id",  # of API keys, which are looked up with their tenant
    "last_event_id",
}
EXCEPTIONS: Final = {
    ("POST", "/tokens", "id"),  # compared with the ids in paths, as they are sent
    ("POST", "/tasks/{task_id}/events", "question_id"),  # ignored, see `EventDefinition`
    ("POST", "/sessions/{session_id}/tasks/{task_id}/send_event", "question_id"),
}


def looks_like_id(name: str) -> bool:
    return (name.endswith("_id") or name in NAMES) and name not in OTHERS


def properties(schema: Any, components: Any) -> Iterator[str]:
    """Yield the names of the properties in a schema, and in those that it refers to."""
    if isinstance(schema, list):
        for each in schema:
            yield from properties(each, components)
    elif isinstance(schema, dict):
        if "$ref" in schema:
            yield from properties(components[schema["$ref"].rpartition("/")[2]], components)
        yield from schema.get("properties", {})
        yield from properties(list(schema.get("properties", {}).values()), components)
        for name in ("items", "anyOf", "allOf", "oneOf"):
            yield from properties(schema.get(name), components)


async def document_of_control_plane() -> Any:
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue,
        ControlPlaneServer(
            queue.local_queue(), config=ControlPlaneConfig(port=0, state_store_uri="sqlite:///:memory:")
        ) as server,
    ):
        return pydantic_core.from_json((await send(server.config.url, "GET", "/openapi.json")).body)


async def test_every_field_that_looks_like_an_id_is_translated() -> None:
    document = await document_of_control_plane()
    components = document["components"]["schemas"]
    found = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            needed = CONTROL_PLANE_ACCESS[method.upper(), path]
            if needed.tenancy in (Tenancy.OPERATOR, Tenancy.SHARED):
                continue
            stated = {name.rpartition(".")[2] for name in ids_of(path, needed)}
            names = {each["name"] for each in operation.get("parameters", ())}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            names |= set(properties(body.get("schema", {}), components))
            for name in filter(looks_like_id, names):
                if (method.upper(), path, name) not in EXCEPTIONS:
                    assert name in stated, (method, path, name)
                    found += 1
    assert found > 40


def test_a_route_without_a_statement_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="tenancy"):
        Requirement()  # type: ignore[call-arg]


def test_a_route_that_names_a_parameter_it_has_not_cannot_be_built() -> None:
    table = {("GET", "/a"): Requirement(Tenancy.OWN, ids={"other.task_id": IdKind.TASK})}

    async def endpoint(task_id: str) -> None:
        del task_id

    with pytest.raises(TypeError, match="no parameter other"):
        new_router(table).get("/a")(endpoint)


def test_an_endpoint_that_cannot_look_up_its_ids_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="asynchronous"):
        with_keys(lambda task_id: task_id, {"task_id": IdKind.TASK}, None)  # type: ignore[arg-type]


def test_only_callers_of_the_default_tenant_see_what_is_about_all() -> None:
    callers = {
        "default": Caller("a", "", frozenset({"*"})),
        "bound": Caller("a", "", frozenset({"*"}), is_bound=True),
        "tenant": Caller("a", "acme", frozenset({"*"})),
        "bound in a tenant": Caller("a", "acme", frozenset({"*"}), is_bound=True),
    }
    admitted = {
        tenancy: [name for name, caller in callers.items() if tenancy.admits(caller)] for tenancy in Tenancy
    }
    assert admitted[Tenancy.OPERATOR] == ["default"]
    assert admitted[Tenancy.TENANT] == ["default", "tenant"]
    assert admitted[Tenancy.OWN] == admitted[Tenancy.SHARED] == list(callers)
    assert Tenancy.OPERATOR.admits(ANONYMOUS)


def test_queue_and_services_are_for_operators() -> None:
    for table in (QUEUE_ACCESS, SERVICE_ACCESS):
        for (_, path), needed in table.items():
            shared = path == "/" or path.startswith("/health")
            assert needed.tenancy is (Tenancy.SHARED if shared else Tenancy.OPERATOR)
