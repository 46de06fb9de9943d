"""What strangers, other tenants and other users try at every route: they get 401, 403 or 404, never data."""

from __future__ import annotations

import gzip
import json
import re
import resource
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pydantic_core
import pytest

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually
from llama_deploy.types.callers import Caller
from llama_deploy.types.owners import Owner
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS, Requirement, Tenancy
from tests.integration.guarded_server import ADMIN
from tests.integration.tenant_stack import OWNED, Parties, Party, send_json, tenant_stack
from tests.integration.test_edge import Answer, send

VICTIM: Final = Owner("acme", "zoe")
UNKNOWN: Final = {"session": "s-unknown", "task": "t-unknown", "open": "o-unknown", "failed": "f-unknown"}
ENDLESS: Final = {"/events": "/events?wait=0"}
NEEDS_NO_KEY: Final = {"/health/live", "/health/ready", "/callbacks/{token}"}


@dataclass(frozen=True, slots=True)
class Target:
    """What an attack names."""

    ids: dict[str, str]
    question_id: str
    text: str = "secret-of-nobody"


@pytest.fixture
async def parties(tmp_path: Path) -> AsyncIterator[Parties]:
    async with tenant_stack(tmp_path) as parties:
        yield parties


async def documented(url: str) -> list[tuple[str, str]]:
    answer = await send_json(url, ADMIN, "GET", "/openapi.json")
    paths: dict[str, Any] = pydantic_core.from_json(answer.body)["paths"]
    return sorted((method.upper(), path) for path, methods in paths.items() for method in methods)


def bodies(target: Target) -> dict[tuple[str, str], object]:
    """Return the bodies of routes that need one: what they name is the target's."""
    session, task, open_ = (target.ids[name] for name in ("session", "task", "open"))
    event = {"qualified_name": "workflows.events.HumanResponseEvent", "value": {"response": "x"}}
    return {
        ("POST", "/sessions/{session_id}/tasks"): {"input": '{"text": "x"}', "agent_id": "talk"},
        ("POST", "/sessions/{session_id}/tasks/{task_id}/send_event"): {"event_obj_str": json.dumps(event)},
        ("POST", "/sessions/{session_id}/state"): {"note": "x"},
        ("PUT", "/sessions/{session_id}/state"): {"note": "x"},
        ("POST", "/sessions/{session_id}/fork"): {"task_id": task},
        ("POST", "/tasks"): {"service_name": "talk", "session_id": session, "arguments": {"text": "x"}},
        ("POST", "/tasks/bulk"): {
            "action": "cancel",
            "bulk_id": "b",
            "dry_run": False,
            "filter": {"session": session},
        },
        ("POST", "/tasks/import"): {},
        ("POST", "/tasks/{task_id}/events"): {"event_obj_str": json.dumps(event)},
        ("POST", "/tasks/{task_id}/move"): {"to": "none", "from": "start"},
        ("POST", "/tasks/{task_id}/retry"): {"from": "start"},
        ("POST", "/inbox/{question_id}/answer"): {"event": {"response": "x"}},
        ("POST", "/inbox/{question_id}/refuse"): {"reason": "x"},
        ("POST", "/inbox/{question_id}/assign"): {"assignee": "yan"},
        ("POST", "/keys"): {"scopes": ["admin"], "expires_in_seconds": None, "tenant": "acme"},
        ("POST", "/tokens"): {"kind": "task", "id": open_, "scopes": ["tasks:read"]},
        ("POST", "/storage/purge"): {"session": session, "dry_run": False},
        ("POST", "/attempts/claim"): [{"task_id": open_, "attempt": 1, "instance_id": "mine"}],
        ("POST", "/services/register"): {"service_name": "talk", "instance_id": "mine"},
    }


def attacks(routes: list[tuple[str, str]], target: Target) -> Iterator[tuple[str, str, str, object]]:
    """Yield method and path of each route, with a request that names what belongs to the target."""
    for method, route in routes:
        for task in ("task", "open") if "{task_id}" in route else ("task",):
            values = {
                "session_id": target.ids["session"],
                "task_id": target.ids[task],
                "question_id": target.question_id,
            }
            path = re.sub(r"{(\w+)[^}]*}", lambda found: values.get(found[1], "x"), route)  # noqa: B023
            yield method, route, ENDLESS.get(path, path), bodies(target).get((method, route))
    for query in (
        f"session={target.ids['session']}",
        f"parent={target.ids['task']}",
        f"q={target.ids['open'][:4]}",
    ):
        yield "GET", "/tasks", f"/tasks?{query}", None
    yield "GET", "/tasks/{task_id}", f"/tasks/{target.ids['task']}?wait=1", None
    yield "GET", "/sessions", f"/sessions?after={target.ids['session'][:-1]}", None
    yield "GET", "/events", f"/events?wait=0&session={target.ids['session']}", None


async def attack(url: str, key: str | None, method: str, path: str, body: object) -> Answer:
    headers = {"If-Match": '"1"'} if method == "PUT" else {}
    return await send_json(url, key, method, path, body, **headers)


def target_of(party: Party) -> Target:
    return Target(party.ids, party.question_id, party.secret)


async def state_of(victim: Party) -> object:
    """Return all that an attack could change."""
    ids = victim.ids
    paths = [f"/tasks/{ids[name]}" for name in ("task", "open", "failed")]
    paths += [f"/sessions/{ids['session']}{rest}" for rest in ("", "/state", "/tasks", "/history")]
    paths += ["/inbox", "/tasks/count", "/sessions?cursor="]
    return [await victim.json("GET", path) for path in paths]


async def keys_of_strangers(parties: Parties) -> dict[str, tuple[str | None, int]]:
    """Return keys with which nothing can be done, and the status that they get."""
    url = parties.stack.control_plane_url
    async with Client(url, api_key=ADMIN) as admin:
        expired = await admin.core.keys.create(OWNED, expires_in=0.001, tenant="acme")
        revoked = await admin.core.keys.create(OWNED, expires_in=None, tenant="acme")
        await admin.core.keys.revoke(revoked.key_id)
    own = parties[VICTIM].key

    async def is_expired() -> bool:
        return (await send_json(url, expired.key, "GET", "/tasks")).status == 401

    await eventually(is_expired)
    return {
        "no key": (None, 401),
        "a wrong key": (own[:-1] + ("a" if own[-1] != "a" else "b"), 401),
        "an expired key": (expired.key, 401),
        "a revoked key": (revoked.key, 401),
    }


async def test_strangers_get_401_from_every_route(parties: Parties) -> None:
    victim = parties[VICTIM]
    before = await state_of(victim)
    routes = [each for each in await documented(victim.url) if each[1] not in NEEDS_NO_KEY]
    for name, (key, status) in (await keys_of_strangers(parties)).items():
        for method, route, path, body in attacks(routes, target_of(victim)):
            answer = await attack(victim.url, key, method, path, body)
            assert answer.status == status, (name, method, route, answer)
            assert victim.secret.encode() not in answer.body
    assert await state_of(victim) == before


async def test_a_key_without_the_scope_gets_403_from_every_route(parties: Parties) -> None:
    victim = parties[VICTIM]
    before = await state_of(victim)
    async with Client(victim.url, api_key=ADMIN) as admin:
        keys = {
            scope: (await admin.core.keys.create([scope], expires_in=None, tenant="acme", subject="zoe")).key
            for scope in OWNED
        }
    routes = [each for each in await documented(victim.url) if CONTROL_PLANE_ACCESS[each].scopes]
    for scope, key in keys.items():
        for method, route, path, body in attacks(routes, target_of(victim)):
            if scope in CONTROL_PLANE_ACCESS[method, route].scopes:
                continue
            answer = await attack(victim.url, key, method, path, body)
            assert answer.status == 403, (scope, method, route, answer)
            assert victim.secret.encode() not in answer.body
    assert await state_of(victim) == before


@pytest.mark.parametrize("attacker", [Owner("beta"), Owner(), Owner("acme", "yan")], ids=str)
async def test_what_others_own_answers_like_what_does_not_exist(parties: Parties, attacker: Owner) -> None:
    victim, enemy = parties[VICTIM], parties[attacker]
    before = await state_of(victim)
    unknown = Target(UNKNOWN, "q" * len(victim.question_id))
    routes = await documented(victim.url)
    real, unreal = attacks(routes, target_of(victim)), attacks(routes, unknown)
    for (method, route, path, body), (_, _, other_path, other_body) in zip(real, unreal, strict=True):
        needed = CONTROL_PLANE_ACCESS[method, route]
        answer = await attack(enemy.url, enemy.key, method, path, body)
        assert victim.secret.encode() not in answer.body, (method, path, answer)
        if not needed.tenancy.admits(caller_of(enemy)) or (
            not set(needed.scopes) & set(OWNED) and needed.scopes
        ):
            assert answer.status == 403, (method, path, answer)
        elif names_something(route, needed) and (method, route) not in EMPTY:
            assert answer.status == 404, (method, path, answer)
        if route in VOLATILE or (enemy.owner.tenant == victim.owner.tenant and answer.status == 404):
            continue  # that an id is taken in the own tenant is no secret
        same = await attack(enemy.url, enemy.key, method, other_path, other_body)
        assert (answer.status, shape(answer, victim.ids, victim.question_id)) == (
            same.status,
            shape(same, UNKNOWN, unknown.question_id),
        ), (method, path)
    assert await state_of(victim) == before


EMPTY: Final = {
    ("POST", "/sessions/{session_id}/delete"),  # does nothing if there is no session, as in 0.6
}
VOLATILE: Final = {
    *("/", "/services", "/services/{service_name}", "/health/ready"),
    *("/tokens", "/events", "/tasks", "/sessions", "/sessions/create"),
}
"""Their answers differ from one moment to the next, or with what the attacker has itself."""


def caller_of(party: Party) -> Caller:
    name = party.owner.subject
    return Caller(name or "key", party.owner.tenant, frozenset(OWNED), is_bound=name is not None)


def names_something(route: str, needed: Requirement) -> bool:
    names = ("{task_id}", "{session_id}", "{question_id}")
    return needed.tenancy is Tenancy.OWN and any(name in route for name in names)


def shape(answer: Answer, ids: dict[str, str], question_id: str) -> str:
    """Return an answer without the ids that were asked for."""
    text = answer.body.decode()
    for each in sorted((*ids.values(), question_id), key=len, reverse=True):
        text = text.replace(each, "ID")
    return text


# -- at the edge of all servers: see also test_edge, test_half_open and test_request_heads


async def test_a_page_elsewhere_and_a_name_that_was_rebound_reach_no_route_even_with_a_key(
    parties: Parties,
) -> None:
    victim = parties[VICTIM]
    key = {"Authorization": f"Bearer {victim.key}", "Content-Type": "application/json"}
    before = await state_of(victim)
    routes = await documented(victim.url)
    foreign = [
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ]
    for method, route, path, body in attacks(routes, target_of(victim)):
        if route in ("/health/live", "/health/ready"):
            continue  # probes come under any name, and are answered without reasons
        for headers, status in foreign:
            content = json.dumps(body).encode()
            answer = await send(victim.url, method, path, {**key, **headers}, content)
            assert answer.status == status, (method, route, headers, answer)
            assert victim.secret.encode() not in answer.body
    assert await state_of(victim) == before


async def test_a_compressed_body_is_not_inflated(parties: Parties) -> None:
    victim = parties[VICTIM]
    bomb = gzip.compress(b'{"a":"' + b"x" * 200_000_000 + b'"}', compresslevel=9)
    assert len(bomb) < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = {
        "Authorization": f"Bearer {victim.key}",
        "Content-Type": "application/json",
        "Content-Encoding": "gzip",
    }
    for path in ("/tasks", "/tasks/import", f"/sessions/{victim.ids['session']}/state", "/callbacks/x"):
        answer = await send(victim.url, "POST", path, headers, bomb)
        assert answer.status in (400, 404, 415, 422), (path, answer)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
