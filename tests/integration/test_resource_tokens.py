"""Tokens for one task, session, stream or question."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
)
from llama_deploy.control_plane.requests.callers.key_callers import judge
from llama_deploy.control_plane.requests.callers.resource_tokens import ResourceToken, read_token
from llama_deploy.deploy import HostedWorkflow, LocalStack
from llama_deploy.errors import InvalidRequestError, PermissionDeniedError
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import NOW
from llama_deploy.testing.state_store_suite.key_cases import a_key
from llama_deploy.types.callers import Resource, ResourceKind
from llama_deploy.types.owners import Owner
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.bearer_tokens import TOKEN_PREFIX
from tests.integration.guarded_server import ADMIN, guarded_server
from tests.integration.test_edge import check_problem, send

JSON = {"Content-Type": "application/json"}
ALL = ("tasks:read", "tasks:write", "inbox:answer")
ID = "a b/c?é"
IDS = {"task_id": ID, "session_id": ID, "question_id": "q-1"}
KEY_ID = "0123456789ab"
SECOND = timedelta(seconds=1)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlPlaneServer]:
    async with guarded_server(tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: ControlPlaneServer) -> AsyncIterator[Client]:
    """A client with a key that may do everything with tasks."""
    async with Client(server.config.url, api_key=ADMIN) as admin:
        key = (await admin.core.keys.create(ALL, expires_in=None)).key
    async with Client(server.config.url, api_key=key) as client:
        yield client


def filled(path: str, ids: Mapping[str, str]) -> str:
    for name, value in {**ids, "service_name": "x", "key_id": "x", "token": "x"}.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    return path


@pytest.mark.parametrize("kind", list(ResourceKind))
async def test_a_token_is_for_the_routes_of_its_resource_only(
    server: ControlPlaneServer, client: Client, kind: ResourceKind
) -> None:
    own = IDS["question_id"] if kind is ResourceKind.QUESTION else ID
    token = (await client.core.keys.issue_token(kind, own, scopes=ALL)).token
    used = 0
    for (method, path), needed in CONTROL_PLANE_ACCESS.items():
        parameter = needed.resources.get(kind)
        headers = {**JSON, "Authorization": f"Bearer {token}"}
        answer = await send(server.config.url, method, filled(path, IDS), headers, b"")
        if parameter is None and not needed.is_open:
            check_problem(answer, 403, "permission_denied")
            continue
        assert answer.status not in (401, 403), (method, path)
        if parameter is None:
            continue
        used += 1
        other = filled(path, {**IDS, parameter: "other"})
        check_problem(await send(server.config.url, method, other, headers, b""), 403, "permission_denied")
        in_query = await send(server.config.url, method, f"{filled(path, IDS)}?token={token}", JSON, b"")
        assert in_query.status == answer.status
    assert used == sum(kind in needed.resources for needed in CONTROL_PLANE_ACCESS.values()) > 0


async def test_a_token_does_not_read_the_documentation_of_all_routes(
    server: ControlPlaneServer, client: Client
) -> None:
    token = (await client.core.keys.issue_token("stream", ID, scopes=["tasks:read"])).token
    for path in ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"):
        for headers in ({"Authorization": f"Bearer {token}"}, {}):
            query = "" if headers else f"?token={token}"
            refused = await send(server.config.url, "GET", path + query, headers)
            check_problem(refused, 403, "permission_denied")
        key = {"Authorization": f"Bearer {ADMIN}"}
        assert (await send(server.config.url, "GET", path, key)).status == 200
        assert (await send(server.config.url, "GET", path)).status == 401


@pytest.mark.parametrize("suffix", ["", "&by=route"])
async def test_a_token_waits_for_the_result_of_its_task_only(
    server: ControlPlaneServer, client: Client, suffix: str
) -> None:
    """Those who wait are answered by a shortcut, unless the query begins otherwise."""
    token = (await client.core.keys.issue_token("task", "t", scopes=["tasks:read"])).token
    for headers, query in (
        ({"Authorization": f"Bearer {token}"}, f"wait=0.1{suffix}"),
        ({"Authorization": f"Bearer {token}"}, f"{suffix[1:]}&wait=0.1"),
        ({}, f"wait=0.1{suffix}&token={token}"),
    ):
        for task_id, status in (("t", 404), ("other", 403)):
            answer = await send(server.config.url, "GET", f"/tasks/{task_id}?{query}", headers)
            assert answer.status == status, (task_id, query)
    check = await send(server.config.url, "GET", f"/tasks/t?wait=0.1{suffix}")
    check_problem(check, 401, "unauthenticated")


async def test_a_token_has_its_scopes_only(server: ControlPlaneServer, client: Client) -> None:
    token = (await client.core.keys.issue_token("task", "t", scopes=["tasks:read"])).token
    assert (await send(server.config.url, "GET", f"/tasks/t?token={token}")).status == 404
    check_problem(
        await send(server.config.url, "POST", f"/tasks/t/cancel?token={token}", JSON, b""),
        403,
        "permission_denied",
    )


async def test_a_token_never_has_more_than_its_key(server: ControlPlaneServer) -> None:
    async with Client(server.config.url, api_key=ADMIN) as admin:
        reader = await admin.core.keys.create(["tasks:read"], expires_in=3600)
        with pytest.raises(PermissionDeniedError, match="API key of the state store"):
            await admin.core.keys.issue_token("task", "t", scopes=["tasks:read"])
        async with Client(server.config.url, api_key=reader.key) as client:
            with pytest.raises(PermissionDeniedError, match="tasks:write"):
                await client.core.keys.issue_token("task", "t", scopes=["tasks:write"])
            with pytest.raises(InvalidRequestError):
                await client.core.keys.issue_token("task", "t", scopes=["admin"])
            long = await client.core.keys.issue_token("task", "t", scopes=["tasks:read"], expires_in=86_400)
            assert long.expires_at == reader.expires_at
            assert long.token not in repr(long)
        async with Client(server.config.url, api_key=long.token) as browser:
            with pytest.raises(PermissionDeniedError):
                await browser.core.keys.issue_token("task", "t", scopes=["tasks:read"])


async def test_a_token_ends_with_its_key_and_by_itself(server: ControlPlaneServer, client: Client) -> None:
    async def status(token: str) -> int:
        return (await send(server.config.url, "GET", f"/tasks/t?token={token}")).status

    short = await client.core.keys.issue_token("task", "t", scopes=["tasks:read"], expires_in=0.2)

    async def is_over() -> bool:
        return await status(short.token) == 401

    await eventually(is_over)
    token = (await client.core.keys.issue_token("task", "t", scopes=["tasks:read"])).token
    assert await status(token) == 404
    async with Client(server.config.url, api_key=ADMIN) as admin:
        async for key in admin.core.keys.list():
            await admin.core.keys.revoke(key.key_id)
    assert await status(token) == 401


async def test_only_tokens_are_read_from_a_query(server: ControlPlaneServer, client: Client) -> None:
    token = (await client.core.keys.issue_token("task", "t", scopes=["tasks:read"])).token
    key = client.settings.api_key
    assert key is not None
    for query in (
        f"token={key.get_secret_value()}",
        f"token={ADMIN}",
        f"token={token}&token={token}",
        "token=",
    ):
        check_problem(await send(server.config.url, "GET", f"/tasks/t?{query}"), 401, "unauthenticated")


async def test_a_token_is_in_no_log_and_no_answer(
    server: ControlPlaneServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    token = (await client.core.keys.issue_token("task", "t", scopes=["tasks:read"])).token
    for path in ("/tasks/t", "/tasks/t/events", "/sessions", "/unknown", "/tasks/t?wait=x"):
        sign = "&" if "?" in path else "?"
        answer = await send(server.config.url, "GET", f"{path}{sign}token={token}")
        assert answer.status >= 400
        assert token.encode() not in answer.body
    assert token not in caplog.text


# -- the form and the signature


TOKEN = ResourceToken(
    KEY_ID, Resource(ResourceKind.TASK, "t"), frozenset({"tasks:read"}), NOW + SECOND, owner=Owner()
)


def a_token(**changes: Any) -> ResourceToken:
    return replace(TOKEN, **changes)


def test_a_changed_token_is_not_valid() -> None:
    key = a_key(secret_hash="ab" * 32)
    token = a_token().signed(key.secret_hash)
    assert judge(token, key, NOW) is not None
    for position in range(len(TOKEN_PREFIX), len(token) - 1):
        other = "A" if token[position] != "A" else "B"
        assert judge(token[:position] + other + token[position + 1 :], key, NOW) is None
    payload, signature = token.split(".")
    stolen = a_token(resource=Resource(ResourceKind.TASK, "other")).signed("cd" * 32).split(".")[0]
    for forged in (payload, f"{payload}.", f"{stolen}.{signature}", f"{token}.x"):
        assert judge(forged, key, NOW) is None


def test_a_token_of_another_key_or_an_ended_one_is_not_valid() -> None:
    key = a_key(secret_hash="ab" * 32)
    token = a_token().signed(key.secret_hash)
    assert judge(token, key._replace(secret_hash="cd" * 32), NOW) is None
    assert judge(token, key._replace(revoked_at=NOW), NOW) is None
    assert judge(token, key._replace(expires_at=NOW), NOW) is None
    assert judge(token, key, NOW + SECOND) is None
    found = judge(token, key._replace(scopes='["tasks:write"]'), NOW)
    assert found is not None
    assert not found[0].scopes


def test_a_token_never_gives_the_rights_of_an_administrator() -> None:
    key = a_key(secret_hash="ab" * 32)
    found = judge(a_token(scopes=frozenset({"admin", "*", "tasks:read"})).signed(key.secret_hash), key, NOW)
    assert found is not None
    assert found[0].scopes == {"tasks:read"}


ACME, ZOE, YAN = Owner("acme"), Owner("acme", "zoe"), Owner("acme", "yan")
OTHERS = {Owner(), ACME, ZOE, YAN, Owner("beta"), Owner("", "zoe")}


@pytest.mark.parametrize(
    ("of", "scopes", "accepted"),
    [
        (Owner(), ["admin"], OTHERS),
        (Owner(), ["services:host", "tasks:read"], OTHERS),
        (Owner(), ["tasks:read"], {None, Owner()}),
        (ACME, ["admin"], {None, ACME}),
        (ZOE, ["tasks:read"], {None, ZOE}),
    ],
)
def test_a_token_is_for_owners_for_whom_its_key_may_act(
    of: Owner, scopes: list[str], accepted: set[Owner | None]
) -> None:
    """One of the first format names no owner, so it is not valid if its key may act for several."""
    key = a_key(secret_hash="ab" * 32, scopes=json.dumps(scopes), tenant=of.tenant, subject=of.subject)
    found = {
        owner: judge(a_token(owner=owner).signed(key.secret_hash), key, NOW) for owner in (None, *OTHERS)
    }
    assert {owner for owner, judged in found.items() if judged} == accepted
    assert all(judged[0].owner == (owner or of) for owner, judged in found.items() if judged)


@pytest.mark.parametrize(
    "owner", [["a b", None], ["acme", ""], ["acme", "a\x1fb"], ["acme"], ["acme", 7], [7, None], [[], {}]]
)
def test_a_token_of_what_cannot_be_an_owner_is_malformed(owner: list[Any]) -> None:
    values = [2, KEY_ID, "task", "t", ["tasks:read"], 1, *owner]
    payload = base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
    assert read_token(f"{TOKEN_PREFIX}{payload}.x") is None


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_token_or_malformed(text: str) -> None:
    read_token(text)
    read_token(TOKEN_PREFIX + text)


def test_a_token_says_what_it_is_for() -> None:
    for kind, scopes in itertools.product(ResourceKind, ({"tasks:read"}, set(ALL))):
        token = a_token(resource=Resource(kind, "é ?"), scopes=frozenset(scopes))
        assert read_token(token.signed("ab" * 32)) == token


class Inner(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("text", "secret"))


async def test_a_token_of_a_session_reads_its_own_tasks_and_no_others(tmp_path: Path) -> None:
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
        authentication="keys",
        admin_key=SecretStr(ADMIN),
    )
    async with (
        await LocalStack.start(
            [HostedWorkflow.named("inner", Inner)],
            control_plane_config=config,
            message_queue_config=SimpleMessageQueueConfig(port=0),
        ) as stack,
        Client(stack.control_plane_url, api_key=ADMIN) as admin,
    ):
        key = (await admin.core.keys.create(ALL, expires_in=None)).key
        own, other = await admin.core.sessions.create(), await admin.core.sessions.create()
        tasks = [await session.run_nowait("inner") for session in (own, other)]
        for task_id in tasks:
            await admin.task(task_id).result()
        async with Client(stack.control_plane_url, api_key=key) as client:
            token = (await client.core.keys.issue_token("session", own.id, scopes=["tasks:read"])).token
        url = f"{stack.control_plane_url}"
        headers = {"Authorization": f"Bearer {token}"}
        for task_id, is_shown in zip(tasks, (True, False), strict=True):
            for what in ("result", "result_stream"):
                path = f"/sessions/{own.id}/tasks/{task_id}/{what}"
                assert (b"secret" in (await send(url, "GET", path, headers)).body) is is_shown
        check_problem(
            await send(url, "GET", f"/sessions/{other.id}/history", headers), 403, "permission_denied"
        )
