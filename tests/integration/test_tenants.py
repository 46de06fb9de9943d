"""Callers of a tenant, and of a subject in it, work with what is theirs; ids are unique in each tenant."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pydantic_core
import pytest

from llama_deploy import Client
from llama_deploy.errors import (
    ServiceNotFoundError,
    SessionNotFoundError,
    TaskFailedError,
    TaskNotFoundError,
    UnavailableError,
)
from llama_deploy.types import SessionOptions, TaskDefinition, TaskSubmission
from llama_deploy.types.keys import SEPARATOR
from llama_deploy.types.owners import Owner, headers_for
from llama_deploy.types.retention import RetentionRule
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS, IdKind
from llama_deploy.web.edge.owned_ids import existing_in
from tests.integration.guarded_server import ADMIN, guarded_server
from tests.integration.in_process import running_stack
from tests.integration.tenant_stack import OWNED, OWNERS, Parties, send_json, tenant_stack
from tests.integration.test_edge import check_problem

SEPARATORS = (SEPARATOR, "\\u001f", "\\u001F", "%1f", "%1F", "\\x1f")


@pytest.fixture
async def parties(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Parties]:
    is_shared = getattr(request, "param", "sqlite") == "postgresql"
    uri = request.getfixturevalue("postgresql_uri") if is_shared else None
    async with tenant_stack(tmp_path, uri) as parties:
        yield parties


on_both_stores = pytest.mark.parametrize("parties", ["sqlite", "postgresql"], indirect=True)


def check_public(text: str) -> None:
    """Check that no key stands in an answer, nor in a cursor in it."""
    assert not [each for each in SEPARATORS if each in text], text
    for word in re.findall(r"[A-Za-z0-9_-]{20,}", text):
        if word.startswith("WzEs"):  # a cursor, which is a list in base64
            decoded = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4)).decode()
            assert "\\u001f" not in decoded, decoded


@on_both_stores
async def test_the_same_id_is_another_task_in_each_tenant(parties: Parties) -> None:
    body = {"task_id": "same", "session_id": "same-session", "service_name": "talk"}
    shown = {}
    for tenant in ("", "acme", "beta"):
        party = parties[tenant, None]
        await party.json("POST", "/sessions/create", {"session_id": "same-session"})
        task = await party.json("POST", "/tasks?wait=30", {**body, "arguments": {"text": party.secret}})
        assert (task["task_id"], task["session_id"]) == ("same", "same-session")
        shown[tenant] = task["result"]["value"]
        again = await party.json("POST", "/tasks?wait=30", {**body, "arguments": {"text": party.secret}})
        assert again["created_at"] == task["created_at"]
    assert shown == {
        tenant: [parties[tenant, None].secret, "same", "same-session", tenant, None]
        for tenant in ("", "acme", "beta")
    }


async def test_a_step_knows_its_owner_and_calls_other_services_for_it(parties: Parties) -> None:
    for owner in OWNERS:
        party = parties[owner]
        body = {
            "service_name": "call",
            "task_id": "caller-" + party.name,
            "arguments": {"text": party.secret},
        }
        task = await party.json("POST", "/tasks?wait=30", body)
        text, child, session, tenant, subject = task["result"]["value"]
        assert (text, tenant, subject) == (party.secret, *owner)
        details = await party.json("GET", f"/tasks/{child}")
        assert (details["parent_task_id"], details["session_id"]) == (body["task_id"], session)
        assert (await party.json("GET", f"/tasks/{body['task_id']}"))["children"] == [child]


@on_both_stores
async def test_every_list_and_count_has_what_is_owned_and_nothing_else(parties: Parties) -> None:
    for owner in OWNERS:
        party = parties[owner]
        own = [
            each
            for each in parties.of.values()
            if each.owner.tenant == owner.tenant and owner.subject in (None, each.owner.subject)
        ]
        ids = {each.ids[name] for each in own for name in ("task", "open", "failed")}
        sessions = {each.ids["session"] for each in own}
        for query in ("", "?tag=red", "?order=oldest", "?q=", "?service=talk&service="):
            if query == "?q=":
                found = [await party.json("GET", f"/tasks?q={name}") for name in ("t-", "open-", "f-")]
            elif query.startswith("?service"):
                names = ("talk", "ask", "fail")
                found = [await party.json("GET", f"/tasks?service={name}") for name in names]
            else:
                found = [await party.json("GET", f"/tasks{query}")]
            assert {task["task_id"] for page in found for task in page["items"]} == ids, (owner, query)
        counts = await party.json("GET", "/tasks/count")
        assert sum(each["count"] for each in counts["items"]) == len(ids)
        for query in ("?cursor=", "?tag=red", "?order=newest"):
            page = await party.json("GET", f"/sessions{query}")
            assert {session["session_id"] for session in page["items"]} == sessions
        assert set(await party.json("GET", "/sessions")) == sessions
        inbox = await party.json("GET", "/inbox")
        assert {each["question_id"] for each in inbox["items"]} == {each.question_id for each in own}
        dry = {"action": "cancel", "all": True, "filter": {}}
        bulk = await party.json("POST", "/tasks/bulk", dry)
        assert {each["task_id"] for each in bulk["items"]} == {each.ids["open"] for each in own}


@on_both_stores
async def test_pages_of_an_owner_follow_each_other(parties: Parties) -> None:
    acme = parties["acme", None]
    for path in ("/tasks?limit=1", "/tasks?limit=1&q=t-", "/sessions?limit=1&order=oldest", "/inbox?limit=1"):
        seen, cursor = set(), ""
        while cursor is not None:
            answer = await acme.send("GET", f"{path}{cursor and f'&cursor={cursor}'}")
            check_public(answer.body.decode() + str(answer.headers))
            page = pydantic_core.from_json(answer.body)
            seen |= {json.dumps(item, sort_keys=True) for item in page["items"]}
            cursor = page["next_cursor"]
            if cursor is not None:
                other = await parties["beta", None].send("GET", f"{path}&cursor={cursor}")
                assert acme.secret.encode() not in other.body
        assert len(seen) in (3, 9)


async def test_no_answer_shows_a_key(parties: Parties) -> None:
    for owner in [Owner("acme"), Owner("acme", "zoe")]:
        party = parties[owner]
        task, session, open_, failed = (party.ids[name] for name in ("task", "session", "open", "failed"))
        exported = await party.json("GET", f"/tasks/{task}/export")
        requests: list[tuple[str, str, object]] = [
            *(
                ("GET", f"/tasks/{each}{rest}", None)
                for each in (task, open_, failed)
                for rest in ("", "/steps")
            ),
            *(("GET", f"/tasks/{each}/export", None) for each in (task, failed)),
            *(("GET", f"/tasks/{each}/questions", None) for each in (task, open_)),
            ("GET", f"/tasks/{task}?wait=1", None),
            ("GET", f"/tasks/{task}/events?attempts=true", None),
            ("GET", f"/tasks/{failed}/events", None),
            ("GET", "/tasks?limit=2", None),
            ("GET", f"/tasks?session={session}", None),
            ("GET", "/tasks/count", None),
            ("GET", "/sessions", None),
            ("GET", f"/sessions?after={session}", None),
            ("GET", "/sessions?cursor=&limit=1", None),
            *(
                ("GET", f"/sessions/{session}{rest}", None)
                for rest in ("", "/tasks", "/current_task", "/state", "/history?limit=1", "/workflow_state")
            ),
            ("GET", f"/sessions/{session}/tasks?after={task}", None),
            ("GET", f"/sessions/{session}/tasks/{task}/result", None),
            ("GET", f"/sessions/{session}/tasks/{failed}/result", None),
            ("GET", f"/sessions/{session}/tasks/{task}/result_stream", None),
            ("GET", "/inbox", None),
            ("GET", f"/inbox/{party.question_id}", None),
            ("POST", f"/inbox/{party.question_id}/assign", {"assignee": "zoe"}),
            ("POST", f"/inbox/{party.question_id}/callback", None),
            ("GET", "/services", None),
            ("GET", "/services/talk", None),
            ("GET", "/", None),
            ("GET", "/health", None),
            ("GET", "/health/ready", None),
            ("POST", "/sessions/create", {}),
            ("POST", f"/sessions/{session}/fork", {"session_id": f"fork-{party.name}"}),
            ("GET", f"/sessions/fork-{party.name}", None),
            ("POST", f"/sessions/{session}/tasks", {"input": "{}", "agent_id": "talk", "task_id": "x"}),
            ("POST", "/tasks", {"service_name": "talk", "task_id": task, "arguments": {"text": "other"}}),
            ("POST", f"/tasks/{failed}/retry", {"from": "start", "task_id": f"again-{party.name}"}),
            ("POST", f"/tasks/{failed}/retry", {"from": "start", "task_id": f"again-{party.name}"}),
            ("POST", f"/tasks/{open_}/move", {"to": "none", "from": "start"}),
            ("POST", f"/tasks/{task}/cancel", None),
            ("POST", f"/tasks/{task}/events", {"event_obj_str": "{}"}),
            ("POST", "/tasks/import?task_id=copy", exported),
            ("POST", "/tasks/bulk", {"action": "retry", "dry_run": True, "filter": {"session": session}}),
            ("POST", "/tasks/bulk", {"action": "retry", "dry_run": False, "filter": {"q": "f-"}}),
            ("GET", "/events?wait=0", None),
            ("POST", "/tokens", {"kind": "task", "id": task, "scopes": ["tasks:read"]}),
            *(
                (method, path, None)
                for method, path in (
                    ("GET", "/tasks/missing"),
                    ("POST", "/tasks/missing/cancel"),
                    ("GET", "/sessions/missing/state"),
                    ("GET", "/sessions/missing/tasks"),
                    ("GET", f"/sessions/{session}/tasks?after=missing"),
                    ("GET", "/tasks/missing/events"),
                    ("GET", "/inbox/missing"),
                )
            ),
            ("POST", f"/sessions/{session}/delete", None),
            ("POST", f"/sessions/{session}/delete?cancel=true", None),
        ]
        for method, path, body in requests:
            answer = await party.send(method, path, body)
            assert answer.status < 500, (method, path, answer)
            check_public(answer.body.decode() + str(answer.headers))


@on_both_stores
async def test_feeds_tell_what_is_owned(parties: Parties) -> None:
    zoe = parties["acme", "zoe"]

    async def cursor_of(owner: Owner) -> str:
        text = (await parties[owner].send("GET", "/events?wait=0")).body.decode()
        return str(re.findall(r"^id: (\S+)$", text, re.MULTILINE)[-1])

    cursors = {owner: await cursor_of(owner) for owner in OWNERS}
    task = {"service_name": "talk", "task_id": "told", "arguments": {"text": zoe.secret}}
    await zoe.json("POST", "/tasks?wait=30", task)

    async def told(owner: Owner) -> str:
        path = f"/events?wait=5&stream=true&after={cursors[owner]}"
        return (await parties[owner].send("GET", path)).body.decode()

    for owner, text in zip(OWNERS, await asyncio.gather(*map(told, OWNERS)), strict=True):
        check_public(text)
        may_know = owner in (Owner("acme"), Owner("acme", "zoe"))
        assert ('"told"' in text) is may_know, owner
        assert (zoe.secret in text) is may_know, owner
    others = await parties["beta", None].send("GET", f"/events?wait=0&after={cursors[Owner('acme')]}")
    check_problem(others, 422, "invalid_request")


async def test_a_question_is_answered_by_its_owner_and_by_whom_it_is_assigned_to(parties: Parties) -> None:
    zoe, yan, beta = parties["acme", "zoe"], parties["acme", "yan"], parties["beta", None]
    path = f"/inbox/{zoe.question_id}"
    for party in (yan, beta, parties["", None]):
        for method, rest, body in (
            ("GET", "", None),
            ("POST", "/answer", {"event": {"response": "x"}}),
            ("POST", "/refuse", {"reason": "x"}),
            ("POST", "/assign", {"assignee": "yan"}),
            ("POST", "/callback", None),
        ):
            check_problem(await party.send(method, path + rest, body), 404, "question_not_found")
    await zoe.json("POST", f"{path}/assign", {"assignee": "yan"})
    assert len((await yan.json("GET", "/inbox"))["items"]) == 2
    await yan.json("POST", f"{path}/answer", {"event": {"response": "by yan"}})
    check_problem(await yan.send("GET", f"/tasks/{zoe.ids['open']}"), 404, "task_not_found")
    ended = await zoe.json("GET", f"/tasks/{zoe.ids['open']}?wait=30")
    assert ended["result"]["value"] == "by yan"


async def test_a_callback_needs_no_key_and_answers_for_its_tenant(parties: Parties) -> None:
    acme = parties["acme", None]
    made = await acme.json("POST", f"/inbox/{acme.question_id}/callback")
    path = "/" + made["url"].split("/", 3)[3]
    answer = await send_json(acme.url, None, "POST", path, {"response": "called"})
    assert answer.status == 200, answer
    check_public(answer.body.decode())
    assert (await acme.json("GET", f"/tasks/{acme.ids['open']}?wait=30"))["result"]["value"] == "called"


async def test_an_unbound_caller_works_with_all_subjects_and_their_sessions_keep_theirs(
    parties: Parties,
) -> None:
    acme, zoe, yan = parties["acme", None], parties["acme", "zoe"], parties["acme", "yan"]
    body = {"service_name": "talk", "session_id": zoe.ids["session"], "arguments": {"text": "for zoe"}}
    await acme.json("POST", "/tasks?wait=30", {**body, "task_id": "by-acme"})
    task = await zoe.json("GET", "/tasks/by-acme")
    assert task["result"]["value"][3:] == ["acme", "zoe"]
    check_problem(await yan.send("GET", "/tasks/by-acme"), 404, "task_not_found")
    retried = await acme.json("POST", "/tasks/by-acme/retry", {"from": "start", "task_id": "again"})
    assert (await zoe.json("GET", f"/tasks/{retried['task_id']}"))["retry_of"] == "by-acme"
    forked = await acme.json("POST", f"/sessions/{zoe.ids['session']}/fork", {"session_id": "forked"})
    assert (await zoe.json("GET", f"/sessions/{forked['session_id']}/state")) == {"note": zoe.secret}
    check_problem(await yan.send("GET", "/sessions/forked"), 404, "session_not_found")


async def test_known_ids_of_another_subject_are_not_found_on_create(parties: Parties) -> None:
    zoe, yan = parties["acme", "zoe"], parties["acme", "yan"]
    same = {"service_name": "talk", "arguments": {"text": zoe.secret}, "task_id": zoe.ids["task"]}
    check_problem(await yan.send("POST", "/tasks", same), 404, "task_not_found")
    check_problem(await yan.send("POST", "/tasks?wait=1", same), 404, "task_not_found")
    create = {"session_id": zoe.ids["session"]}
    check_problem(await yan.send("POST", "/sessions/create", create), 404, "session_not_found")
    exported = await zoe.json("GET", f"/tasks/{zoe.ids['task']}/export")
    check_problem(await yan.send("POST", "/tasks/import", exported), 404, "task_not_found")
    fork = {"session_id": zoe.ids["session"]}
    path = f"/sessions/{yan.ids['session']}/fork"
    check_problem(await yan.send("POST", path, fork), 404, "session_not_found")
    retry = {"from": "start", "task_id": zoe.ids["task"]}
    check_problem(await yan.send("POST", f"/tasks/{yan.ids['task']}/retry", retry), 404, "task_not_found")


async def test_a_copy_of_a_task_belongs_to_whoever_imports_it(parties: Parties) -> None:
    acme, beta = parties["acme", None], parties["beta", None]
    exported = await acme.json("GET", f"/tasks/{acme.ids['failed']}/export")
    copy = await beta.json("POST", "/tasks/import", exported)
    assert copy["task_id"] == acme.ids["failed"]
    assert (await beta.json("GET", f"/tasks/{copy['task_id']}"))["error"]["message"] == f"no {acme.secret}"
    again = await beta.json(
        "POST", "/tasks/import", await beta.json("GET", f"/tasks/{copy['task_id']}/export")
    )
    assert again["created_at"] == copy["created_at"]


async def test_an_operator_acts_in_a_tenant_by_a_header(parties: Parties) -> None:
    acme, zoe = parties["acme", None], parties["acme", "zoe"]
    path = f"/tasks/{acme.ids['task']}"
    headers = {"LlamaDeploy-Tenant": "acme"}
    check_problem(await send_json(acme.url, ADMIN, "GET", path), 404, "task_not_found")
    assert (await send_json(acme.url, ADMIN, "GET", path, **headers)).status == 200
    assert (await send_json(acme.url, ADMIN, "GET", f"{path}?wait=1", **headers)).status == 200
    as_zoe = {**headers, "LlamaDeploy-Subject": "zoe"}
    check_problem(await send_json(acme.url, ADMIN, "GET", path, **as_zoe), 404, "task_not_found")
    own = await send_json(acme.url, ADMIN, "GET", f"/tasks/{zoe.ids['task']}", **as_zoe)
    assert own.status == 200
    for wrong in ("", "a b", "a\x1fb", "acme/../beta"):
        answer = await send_json(acme.url, ADMIN, "GET", path, **{"LlamaDeploy-Tenant": wrong})
        assert answer.status in (400, 422), wrong
    for party in parties.of.values():
        for tenant in ("acme", "beta"):
            answer = await send_json(party.url, party.key, "GET", path, **{"LlamaDeploy-Tenant": tenant})
            check_problem(answer, 403, "permission_denied")
        answer = await send_json(party.url, party.key, "GET", path, **{"LlamaDeploy-Subject": "zoe"})
        check_problem(answer, 403, "permission_denied")


async def test_an_administrator_of_a_tenant_manages_the_keys_of_the_tenant_only(parties: Parties) -> None:
    url = parties.stack.control_plane_url
    async with Client(url, api_key=ADMIN) as operator:
        key = (await operator.core.keys.create(["admin"], expires_in=None, tenant="acme")).key
        others = {each.key_id async for each in operator.core.keys.list() if each.tenant != "acme"}
        assert others
    async with Client(url, api_key=key) as admin:
        made = await admin.core.keys.create(["tasks:read"], expires_in=None, subject="zoe")
        assert (made.tenant, made.subject) == ("acme", "zoe")
        listed = [each async for each in admin.core.keys.list()]
        assert {each.tenant for each in listed} == {"acme"}
        await admin.core.keys.revoke(made.key_id)
        assert len(await admin.core.services.list()) == 4
    for body in (
        {"scopes": ["tasks:read"], "tenant": "beta"},
        {"scopes": ["services:host"]},
        {"scopes": ["metrics:read"]},
    ):
        answer = await send_json(url, key, "POST", "/keys", {**body, "expires_in_seconds": None})
        check_problem(answer, 403, "permission_denied")
    for other in others:
        check_problem(await send_json(url, key, "POST", f"/keys/{other}/revoke"), 404, "api_key_not_found")
    for path in ("/storage", "/queue_config"):
        check_problem(await send_json(url, key, "GET", path), 403, "permission_denied")


async def test_a_token_belongs_to_the_owner_of_its_key(parties: Parties) -> None:
    for owner in (Owner("acme"), Owner("acme", "zoe")):
        party = parties[owner]
        for tokened in (party, parties["acme", "yan"], parties["beta", None]):
            new = {"kind": "task", "id": tokened.ids["task"], "scopes": ["tasks:read"]}
            token = (await party.json("POST", "/tokens", new))["token"]
            answer = await send_json(party.url, token, "GET", f"/tasks/{tokened.ids['task']}")
            is_own = tokened.owner.tenant == "acme" and owner.subject in (None, tokened.owner.subject)
            assert answer.status == (200 if is_own else 404)


async def test_a_token_is_for_the_owner_for_whom_its_key_acts(parties: Parties) -> None:
    url = parties.stack.control_plane_url
    async with Client(url, api_key=ADMIN) as admin:
        keys = [
            (await admin.core.keys.create(scopes, expires_in=None)).key
            for scopes in (["admin"], ["services:host", "tasks:read"])
        ]
    body = {"task_id": "same", "service_name": "talk"}
    for owner in (Owner(), Owner("acme", "zoe"), Owner("beta")):
        text = parties[owner].secret
        await parties[owner].json("POST", "/tasks?wait=30", {**body, "arguments": {"text": text}})
    new = {"kind": "task", "id": "same", "scopes": ["tasks:read"]}
    for key in keys:
        for owner in (Owner(), Owner("acme", "zoe"), Owner("beta")):
            answer = await send_json(url, key, "POST", "/tokens", new, **headers_for(owner))
            token = pydantic_core.from_json(answer.body)["token"]
            task = await send_json(url, token, "GET", "/tasks/same?wait=1")
            assert pydantic_core.from_json(task.body)["result"]["value"][0] == parties[owner].secret
        # yan has the same tenant, and no task with this id
        acting = headers_for(Owner("acme", "yan"))
        answer = await send_json(url, key, "POST", "/tokens", new, **acting)
        token = pydantic_core.from_json(answer.body)["token"]
        check_problem(await send_json(url, token, "GET", "/tasks/same"), 404, "task_not_found")


async def test_services_tell_a_tenant_nothing_of_others(parties: Parties) -> None:
    for owner in OWNERS[1:]:
        for service in (await parties[owner].json("GET", "/services")).values():
            assert service["instances"] == [] == service["stranded"]
            assert service["instances_alive"] == 1
    assert (await parties["", None].json("GET", "/services/talk"))["instances"]


async def test_a_failed_task_says_why_without_a_key(parties: Parties) -> None:
    created = parties["acme", None]
    async with Client(created.url, api_key=created.key) as client:
        with pytest.raises(TaskFailedError, match="no "):
            await client.run("fail", text="x")
        assert OWNED


async def test_settings_and_faults_of_the_control_plane_are_not_shown_to_tenants(tmp_path: Path) -> None:
    """They name sessions and services of others, and the machines of the operator."""

    async def fail() -> None:
        raise UnavailableError("broker.internal does not answer")

    rules = [RetentionRule(session="session-of-another-tenant", task_days=1)]
    async with guarded_server(tmp_path, checks={"broker": fail}, retention_rules=rules) as server:
        url = server.config.url
        async with Client(url, api_key=ADMIN) as admin:
            keys = [
                (await admin.core.keys.create(OWNED, expires_in=None, tenant=tenant, subject=subject)).key
                for tenant, subject in (("acme", None), ("acme", "zoe"), (None, "zoe"))
            ]
        for key in keys:
            home = await send_json(url, key, "GET", "/")
            assert pydantic_core.from_json(home.body) == {"running": True, "type": "control_plane"}
            for path in ("/health", "/health/ready"):
                unhealthy = await send_json(url, key, "GET", path)
                assert unhealthy.status == 503
                assert b"internal" not in unhealthy.body
        for path in ("/health", "/health/ready"):
            assert b"broker.internal" in (await send_json(url, ADMIN, "GET", path)).body
        assert b"session-of-another-tenant" in (await send_json(url, ADMIN, "GET", "/")).body


async def test_a_session_that_another_subject_has_created_meanwhile_takes_no_task() -> None:
    """As when it is created between the look at the edge and the transaction."""
    async with running_stack() as stack:
        options = SessionOptions(session_id="guessed")
        await stack.plane.sessions.create(options, owner=Owner("", "zoe"))
        submission = TaskSubmission(task_id="t", session_id="guessed", service_name="none")
        definition = TaskDefinition(task_id="t", session_id="guessed", agent_id="none", input="{}")
        with pytest.raises(SessionNotFoundError):
            await stack.plane.tasks.submit(submission, subject="yan")
        with pytest.raises(SessionNotFoundError):
            await stack.plane.tasks.submit_definition(definition, subject="yan")
        for subject in ("zoe", None):
            with pytest.raises(ServiceNotFoundError):
                await stack.plane.tasks.submit(submission, subject=subject)


async def test_what_a_path_names_exists_before_a_request_of_a_subject_is_served() -> None:
    """Otherwise the request would be about what another subject creates with this id in that moment."""
    async with running_stack() as stack:
        rows, yan = stack.plane.owned_rows, Owner("", "yan")
        for kind, error in ((IdKind.SESSION, SessionNotFoundError), (IdKind.TASK, TaskNotFoundError)):
            await rows.check(yan, {kind: ["new"]})
            await rows.check(Owner(), {kind: ["new"]}, existing=["new"])
            with pytest.raises(error):
                await rows.check(yan, {kind: ["new"]}, existing=["new"])
        # The only route that also answers for what does not exist.
        await stack.plane.sessions.create(SessionOptions(session_id="guessed"), owner=Owner("", "zoe"))
        with pytest.raises(SessionNotFoundError):
            await stack.plane.sessions.delete("guessed", cancel=True, subject="yan")
        await stack.plane.sessions.delete("guessed", cancel=True, subject="zoe")
    for (method, path), needed in CONTROL_PLANE_ACCESS.items():
        named = {name for name in ("session_id", "task_id", "question_id") if f"{{{name}}}" in path}
        assert existing_in(path, needed) == (set() if path.endswith("/delete") else named), (method, path)


async def test_without_authentication_nothing_is_done_for_an_owner() -> None:
    """As for the steps of a tenant's task that goes on after authentication was turned off."""
    async with running_stack() as stack:
        for owner in (Owner("acme"), Owner("", "zoe")):
            for path in ("/tasks", "/tasks?wait=1", "/sessions/create"):
                body = {"service_name": "none"}
                answer = await send_json(
                    stack.server.config.url, None, "POST", path, body, **headers_for(owner)
                )
                check_problem(answer, 422, "invalid_request")
                assert b"this server has no authentication" in answer.body
        assert (await send_json(stack.server.config.url, None, "GET", "/sessions")).body == b"{}"
