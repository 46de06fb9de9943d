"""The audit log: each route that changes something leaves an entry, in the same transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from llama_deploy import Client, ControlPlaneConfig
from llama_deploy.control_plane.maintenance.storage import Storage
from llama_deploy.control_plane.requests.callers import audit_log
from llama_deploy.control_plane.requests.callers.denied_requests import (
    BURST,
    SECONDS_PER_ENTRY,
    DeniedRequests,
)
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.errors import InvalidCursorError, PermissionDeniedError
from llama_deploy.state_stores.audit_repository import AuditRecord
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.conditions import eventually
from llama_deploy.types.audit import Actor, AuditAction, AuditEntry, AuditFilter
from llama_deploy.types.owners import SUBJECT_HEADER, TENANT_HEADER
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from tests.integration.guarded_server import ADMIN, guarded_server
from tests.integration.tenant_stack import Parties, Party, send_json, tenant_stack
from tests.integration.test_edge import send

NOT_RECORDED: Final = {
    # The work of instances, which are processes.
    ("POST", "/services/register"),
    ("POST", "/attempts/claim"),
    ("POST", "/attempts/part"),
    ("POST", "/attempts/journal"),
    ("POST", "/attempts/report"),
    ("POST", "/attempts/release"),
    ("POST", "/instances/heartbeat"),
    ("POST", "/instances/death"),
}
EVENT: Final = {
    "event_obj_str": json.dumps(
        {"qualified_name": "workflows.events.HumanResponseEvent", "value": {"response": "secret-answer"}}
    )
}


@dataclass(slots=True)
class Changes:
    """Sends requests, and knows what they should leave in the log."""

    party: Party
    routes: set[tuple[str, str]] = field(default_factory=set)
    expected: list[tuple[AuditAction, str]] = field(default_factory=list)

    async def do(
        self,
        method: str,
        route: str,
        body: object = None,
        *,
        of: tuple[AuditAction, str],
        query: str = "",
        headers: Mapping[str, str] = {},
        key: str | None = None,
        **values: Any,
    ) -> Any:
        """Send a request that succeeds and leaves an entry."""
        path = route.format(**values) + query
        answer = await send_json(self.party.url, key or self.party.key, method, path, body, **headers)
        assert answer.status in (200, 202, 204), (method, path, answer)
        self.routes.add((method, route))
        self.expected.append(of)
        return json.loads(answer.body) if answer.body else None

    async def ask(self, task_id: str) -> str:
        """Submit a task that asks, and return the id of its question."""
        await self.do(
            "POST",
            "/tasks",
            {"service_name": "ask", "task_id": task_id, "arguments": {"text": "secret-prompt"}},
            of=(AuditAction.TASK_SUBMIT, task_id),
        )
        found: list[str] = []

        async def is_asked() -> bool:
            page = await self.party.json("GET", f"/tasks/{task_id}/questions")
            found[:] = [item["question_id"] for item in page["items"]]
            return bool(found)

        await eventually(is_asked)
        return found[0]


async def entries(url: str, key: str = ADMIN, **conditions: Any) -> list[AuditEntry]:
    async with Client(url, api_key=key) as client, aclosing(client.core.audit.list(**conditions)) as found:
        return [entry async for entry in found]


async def admin_of(url: str, tenant: str) -> str:
    async with Client(url, api_key=ADMIN) as client:
        return (await client.core.keys.create(["admin"], expires_in=None, tenant=tenant)).key


@pytest.fixture
async def parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Parties]:
    monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT", "0")  # so tasks that wait can be moved
    async with tenant_stack(tmp_path, audit="all") as parties:
        yield parties


@pytest.fixture
async def store() -> AsyncIterator[StateStore]:
    async with await open_state_store("sqlite:///:memory:") as store:
        yield store


async def move_when_parked(changes: Changes, task_id: str) -> None:
    """Move a task. Until its run is parked, that is refused."""
    version = (await changes.party.json("GET", f"/tasks/{task_id}"))["version"]

    async def is_moved() -> bool:
        body = {"to": version, "from": "start"}
        answer = await changes.party.send("POST", f"/tasks/{task_id}/move", body)
        return answer.status == 200

    await eventually(is_moved)
    changes.routes.add(("POST", "/tasks/{task_id}/move"))
    changes.expected.append((AuditAction.TASK_MOVE, task_id))


async def change_tasks(changes: Changes) -> None:
    ids, do = changes.party.ids, changes.do
    own: dict[str, Any] = {"session_id": ids["session"], "task_id": ids["open"]}
    await do("POST", "/tasks/{task_id}/events", EVENT, of=(AuditAction.TASK_EVENT, ids["open"]), **own)
    changes.expected.append((AuditAction.QUESTION_ANSWER, changes.party.question_id))
    again = await do(
        "POST",
        "/tasks/{task_id}/retry",
        {"from": "start"},
        of=(AuditAction.TASK_RETRY, ids["failed"]),
        task_id=ids["failed"],
    )
    assert again["retry_of"] == ids["failed"]
    exported = await changes.party.json("GET", f"/tasks/{ids['task']}/export")
    await do("POST", "/tasks/import", exported, of=(AuditAction.TASK_IMPORT, "copy"), query="?task_id=copy")
    await changes.ask("moved")
    await move_when_parked(changes, "moved")
    await changes.ask("cancelled")
    await do(
        "POST", "/tasks/{task_id}/cancel", of=(AuditAction.TASK_CANCEL, "cancelled"), task_id="cancelled"
    )
    await changes.ask("many")
    bulk = {"action": "cancel", "dry_run": False, "filter": {"q": "many"}}
    await do("POST", "/tasks/bulk", bulk, of=(AuditAction.TASK_CANCEL, "many"))


async def change_sessions(changes: Changes) -> None:
    session, do = "other session", changes.do
    own: dict[str, Any] = {"session_id": "other%20session"}
    await do("POST", "/sessions/create", {"session_id": session}, of=(AuditAction.SESSION_CREATE, session))
    state, tag = (AuditAction.SESSION_STATE, session), {"If-Match": '"1"'}
    await do("POST", "/sessions/{session_id}/state", {"a": "secret-state"}, of=state, **own)
    await do("PUT", "/sessions/{session_id}/state", {"a": "secret-state"}, of=state, headers=tag, **own)
    definition = {"input": '{"text": "secret-input"}', "agent_id": "ask", "task_id": "defined"}
    await do(
        "POST", "/sessions/{session_id}/tasks", definition, of=(AuditAction.TASK_SUBMIT, "defined"), **own
    )

    async def is_asked() -> bool:
        return bool((await changes.party.json("GET", "/tasks/defined/questions"))["items"])

    await eventually(is_asked)
    question = (await changes.party.json("GET", "/tasks/defined/questions"))["items"][0]["question_id"]
    route = "/sessions/{session_id}/tasks/{task_id}/send_event"
    await do("POST", route, EVENT, of=(AuditAction.TASK_EVENT, "defined"), task_id="defined", **own)
    changes.expected.append((AuditAction.QUESTION_ANSWER, question))
    await do("POST", "/sessions/{session_id}/fork", {}, of=(AuditAction.SESSION_FORK, session), **own)
    deleted = (AuditAction.SESSION_DELETE, session)
    await do("POST", "/sessions/{session_id}/delete", query="?cancel=true", of=deleted, **own)


async def change_questions(changes: Changes) -> None:
    do = changes.do
    for action, body in (
        ("assign", {"assignee": "zoe"}),
        ("refuse", {"reason": "secret-reason"}),
        ("answer", {"event": {"response": "secret-answer"}}),
    ):
        question = await changes.ask(action)
        of = (AuditAction(f"question.{action}"), question)
        await do("POST", f"/inbox/{{question_id}}/{action}", body, of=of, question_id=question)
    question = await changes.ask("called-back")
    of = (AuditAction.QUESTION_CALLBACK, question)
    callback = await do("POST", "/inbox/{question_id}/callback", of=of, question_id=question)
    token = callback["url"].rpartition("/")[2]
    answer = {"response": "secret-answer"}
    await do("POST", "/callbacks/{token}", answer, of=(AuditAction.QUESTION_ANSWER, question), token=token)


async def change_keys(changes: Changes) -> None:
    own = await admin_of(changes.party.url, "acme")
    new = {"scopes": ["tasks:read"], "expires_in_seconds": None, "name": "reader"}
    created = await changes.do("POST", "/keys", new, of=(AuditAction.KEY_CREATE, "?"), key=own)
    changes.expected[-1] = (AuditAction.KEY_CREATE, created["key_id"])
    revoked = (AuditAction.KEY_REVOKE, created["key_id"])
    await changes.do("POST", "/keys/{key_id}/revoke", of=revoked, key=own, key_id=created["key_id"])
    token = {"kind": "task", "id": changes.party.ids["task"], "scopes": ["tasks:read"]}
    await changes.do("POST", "/tokens", token, of=(AuditAction.TOKEN_CREATE, changes.party.ids["task"]))


async def test_each_route_that_changes_something_leaves_an_entry(parties: Parties, tmp_path: Path) -> None:
    """A new route has to be used here, or to stand among those that are not recorded."""
    changes = Changes(parties["acme", None])
    before = datetime.now(UTC)
    for part in (change_tasks, change_sessions, change_questions, change_keys):
        await part(changes)
    found = await entries(changes.party.url, tenant="acme", after=before)
    seen = [(entry.action, entry.target) for entry in found if entry.subject != "admin key"]
    assert sorted(seen) == sorted((action.value, target) for action, target in changes.expected)
    assert {entry.address for entry in found} == {"127.0.0.1"}
    assert all(entry.subject == f"key {entry.key_id}" for entry in found if entry.key_id is not None)
    operator = Changes(parties["", None])
    await operator.do(
        "POST", "/storage/purge", {"dry_run": False}, of=(AuditAction.STORE_PURGE, "tasks"), key=ADMIN
    )
    await operator.do(
        "POST",
        "/services/deregister",
        query="?service_name=fail",
        of=(AuditAction.SERVICE_DELETE, "fail"),
        key=ADMIN,
    )
    purged = await entries(operator.party.url, action=AuditAction.STORE_PURGE)
    deleted = await entries(operator.party.url, action=AuditAction.SERVICE_DELETE)
    assert [entry.outcome for entry in purged] == ["done", "begun"]
    assert [(entry.target, entry.subject) for entry in deleted] == [("fail", "admin key")]
    changing = {route for route in CONTROL_PLANE_ACCESS if route[0] != "GET"}
    assert changes.routes | operator.routes | NOT_RECORDED == changing
    await check_no_secrets(parties, tmp_path)


async def check_no_secrets(parties: Parties, folder: Path) -> None:
    """No entry holds what was sent, streamed or answered, or a key."""
    with closing(sqlite3.connect(folder / "state.db")) as database:
        text = json.dumps(database.execute("SELECT * FROM audit").fetchall())
    assert "task.cancel" in text
    assert not [word for word in ("secret", "llama_", "llamatoken_", ADMIN) if word in text]
    assert not [party.key for party in parties.of.values() if party.key in text]


async def test_what_changes_nothing_leaves_no_entry(parties: Parties) -> None:
    party = parties["acme", None]
    task = party.ids["open"]
    for _ in range(3):
        await party.send("POST", f"/tasks/{task}/cancel")
        await party.send("POST", f"/tasks/{party.ids['task']}/cancel")  # has succeeded: 409
        await party.send("POST", "/tasks", {"service_name": "nothing", "task_id": "nothing"})
        await party.send("POST", "/sessions/create", {"session_id": party.ids["session"]})
        await party.send("POST", f"/inbox/{party.question_id}/answer", {"event": {"response": "late"}})
    assert len(await entries(party.url, target=task, action=AuditAction.TASK_CANCEL)) == 1
    assert not await entries(party.url, target=party.ids["task"], action=AuditAction.TASK_CANCEL)
    assert not await entries(party.url, target="nothing")
    assert len(await entries(party.url, target=party.ids["session"], action="session.create")) == 1
    assert not await entries(party.url, target=party.question_id)


async def test_a_change_whose_entry_cannot_be_stored_does_not_happen(
    parties: Parties, tmp_path: Path
) -> None:
    party = parties["acme", None]
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        database.execute("ALTER TABLE audit RENAME TO gone")
        refused = await party.send("POST", f"/tasks/{party.ids['open']}/cancel")
        key = await send_json(
            party.url, ADMIN, "POST", "/keys", {"scopes": ["admin"], "expires_in_seconds": 9}
        )
        database.execute("ALTER TABLE gone RENAME TO audit")
    assert refused.status >= 500
    assert key.status >= 500
    assert (await party.json("GET", f"/tasks/{party.ids['open']}"))["status"] == "waiting"
    assert len(await entries(party.url, action=AuditAction.KEY_CREATE)) == len(parties.of)
    await party.json("POST", f"/tasks/{party.ids['open']}/cancel")


@pytest.mark.parametrize("recorded", ["changes", "off"])
async def test_everyday_requests_leave_no_entries_unless_all_do(tmp_path: Path, recorded: str) -> None:
    settings = {} if recorded == "changes" else {"audit": recorded}
    async with tenant_stack(tmp_path, **settings) as parties:
        party = parties["", None]
        await party.json("POST", f"/tasks/{party.ids['open']}/events", EVENT)
        found = {entry.action for entry in await entries(party.url)}
        assert found == ({"key.create", "question.answer"} if recorded == "changes" else set())


async def test_a_tenant_sees_its_own_entries_only(parties: Parties) -> None:
    url = parties["acme", None].url
    for tenant in ("acme", "beta"):
        party = parties[tenant, None]
        await party.json("POST", f"/tasks/{party.ids['open']}/cancel")
    acme = await admin_of(url, "acme")
    found = await entries(url, acme)
    assert {entry.tenant for entry in found} == {"acme"}
    assert AuditAction.TASK_CANCEL in {entry.action for entry in found}
    assert await entries(url, acme, tenant="acme") == found
    with pytest.raises(PermissionDeniedError):
        await entries(url, acme, tenant="beta")
    assert not await entries(url, acme, target=parties["beta", None].ids["open"])
    assert not await entries(url, acme, subject=(await entries(url, tenant="beta"))[0].subject)
    assert {entry.tenant for entry in await entries(url)} == {"", "acme", "beta"}
    assert {entry.tenant for entry in await entries(url, tenant="")} == {""}
    for key in (parties["acme", None].key, parties["acme", "zoe"].key):
        assert (await send_json(url, key, "GET", "/audit")).status == 403


async def test_an_operator_who_acts_for_others_is_named(parties: Parties) -> None:
    party = parties["acme", "zoe"]
    acting = {TENANT_HEADER: "acme", SUBJECT_HEADER: "zoe"}
    path = f"/tasks/{party.ids['open']}/cancel"
    assert (await send_json(party.url, ADMIN, "POST", path, **acting)).status == 200
    (entry,) = await entries(party.url, target=party.ids["open"], action=AuditAction.TASK_CANCEL)
    assert (entry.subject, entry.acting_for, entry.tenant) == ("admin key", "zoe", "acme")
    assert entry.address == "127.0.0.1"
    acme = await admin_of(party.url, "acme")
    (shown,) = await entries(party.url, acme, target=party.ids["open"], action=AuditAction.TASK_CANCEL)
    assert shown == entry.model_copy(update={"address": None})


async def test_who_uses_a_token_is_named_by_its_key(parties: Parties) -> None:
    party = parties["acme", None]
    body = {"kind": "task", "id": party.ids["open"], "scopes": ["tasks:write"]}
    token = (await party.json("POST", "/tokens", body))["token"]
    path = f"/tasks/{party.ids['open']}/cancel"
    assert (await send_json(party.url, token, "POST", path)).status == 200
    (entry,) = await entries(party.url, target=party.ids["open"], action=AuditAction.TASK_CANCEL)
    assert entry.subject == f"token of key {party.key.split('_')[1]}"
    assert entry.details == {"token": "task"}


async def test_refused_requests_leave_entries_without_their_secrets(tmp_path: Path) -> None:
    async with guarded_server(tmp_path) as server:
        url = server.config.url
        async with Client(url, api_key=ADMIN) as client:
            reader = await client.core.keys.create(["tasks:read"], expires_in=None, tenant="acme")
        await send(url, "GET", "/tasks?token=llamatoken_secret")
        await send_json(url, "llama_000000000000_" + "x" * 43, "POST", "/keys", {})
        assert (await send_json(url, reader.key, "GET", "/audit")).status == 403
        assert (await send_json(url, reader.key, "GET", "/tasks")).status == 200
        await server.plane.audit.denied.flush()
        found = await entries(url, outcome="denied")
        assert [(each.action, each.target, each.subject, each.tenant, each.details) for each in found] == [
            ("access", "GET /audit", f"key {reader.key_id}", "acme", {"status": 403}),
            ("access", "POST /keys", "", "", {"status": 401}),
            ("access", "GET /tasks", "", "", {"status": 401}),
        ]
        assert "secret" not in str(found)


async def test_strangers_cannot_fill_the_log(store: StateStore) -> None:
    now = [0.0]
    denied = DeniedRequests(store, lambda: datetime.now(UTC), monotonic=lambda: now[0])
    stranger = Actor(subject="", tenant="", address="192.0.2.1")
    for _ in range(10 * BURST):
        denied.note(stranger, "GET /tasks", status=401)
    now[0] += SECONDS_PER_ENTRY
    denied.note(stranger, "GET /last", status=401)
    for number in range(200):
        denied.note(Actor(subject="", tenant="", address=f"198.51.100.{number}"), "GET /", status=401)
    await denied.flush()
    page = await audit_log.AuditLog(store, "changes", denied).list(AuditFilter(), limit=500)
    assert len(page.items) == 100
    by_address = [entry for entry in page.items if entry.address == "192.0.2.1"]
    assert len(by_address) == BURST + 1
    assert by_address[0].details == {"status": 401, "omitted_before": 9 * BURST}


def record(number: int, **changes: Any) -> AuditRecord:
    entry = AuditRecord(
        at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
        action="task.cancel",
        target=f"t{number}",
        tenant="",
        outcome="done",
        subject="ann",
        home="",
    )
    return entry._replace(**changes)


async def test_pages_follow_each_other_and_a_rare_entry_is_found_in_bounded_steps(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_READ", 10)
    monkeypatch.setattr(audit_log, "_MAX_READS", 3)
    rare = record(0, action="key.create")
    await store.transact(lambda tx: tx.audit.append([rare, *map(record, range(1, 100))]))
    log = audit_log.AuditLog(store, "changes", DeniedRequests(store, lambda: datetime.now(UTC)))

    async def walk(wanted: AuditFilter, limit: int) -> list[list[str]]:
        pages, cursor = [], None
        while True:
            page = await log.list(wanted, cursor=cursor, limit=limit)
            pages.append([entry.target for entry in page.items])
            cursor = page.next_cursor
            if cursor is None:
                return pages

    every = await walk(AuditFilter(), 30)
    assert [target for page in every for target in page] == [f"t{n}" for n in reversed(range(100))]
    assert max(map(len, every)) == 30
    assert await walk(AuditFilter(action=[AuditAction.KEY_CREATE]), 30) == [[], [], [], ["t0"]]
    first = await log.list(AuditFilter(), limit=5)
    with pytest.raises(InvalidCursorError):
        await log.list(AuditFilter(subject="ann"), cursor=first.next_cursor)


async def test_only_retention_removes_entries(store: StateStore) -> None:
    now = record(0).at
    await store.transact(lambda tx: tx.audit.append([record(0), record(86_400 * 300)]))

    async def kept(**settings: Any) -> int:
        config = ControlPlaneConfig(**settings)
        clock = lambda: now + timedelta(days=400)  # noqa: E731
        storage = Storage(store, config, removals=KnownRemovals(), clock=clock)
        await storage.retention.sweep()
        denied = DeniedRequests(store, clock)
        return len((await audit_log.AuditLog(store, "changes", denied).list(AuditFilter())).items)

    assert await kept(retention_audit_days="off") == 2
    assert await kept() == 1
    assert await kept(retention_audit_days=1) == 0
