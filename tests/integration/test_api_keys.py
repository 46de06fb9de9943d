"""API keys: created, listed, expired and revoked, at one control plane and at several."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pydantic_core
import pytest
from pydantic import SecretStr

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.control_plane.requests.callers import api_keys, key_callers
from llama_deploy.control_plane.requests.callers.api_keys import ApiKeys
from llama_deploy.control_plane.requests.callers.key_callers import KNOWN_SECONDS, KeyCallers
from llama_deploy.control_plane.requests.callers.resource_tokens import read_token
from llama_deploy.control_plane.requests.tasks import feed_requests
from llama_deploy.control_plane.streams import stream_hub
from llama_deploy.errors import (
    ApiKeyNotFoundError,
    AuthenticationError,
    ConflictError,
    InvalidRequestError,
    PermissionDeniedError,
)
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.api_keys import NewApiKey
from llama_deploy.types.callers import AccessScope, Caller
from llama_deploy.web.edge import authentication
from tests.integration.guarded_server import ADMIN, guarded_server
from tests.integration.test_edge import check_problem, send

T = TypeVar("T")

READ = NewApiKey(scopes=[AccessScope.TASKS_READ], expires_in_seconds=None)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SlowStore(SQLiteStateStore):
    """Reads at once, and answers when it is told to."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.has_read = asyncio.Event()
        self.answers = asyncio.Event()

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        found = await super().read(work)
        self.has_read.set()
        await self.answers.wait()
        return found


@pytest.fixture
async def store() -> AsyncIterator[StateStore]:
    async with await open_state_store("sqlite:///:memory:") as store:
        yield store


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlPlaneServer]:
    async with guarded_server(tmp_path) as server:
        yield server


class TestOverHttp:
    async def test_a_key_allows_what_its_scopes_say(self, server: ControlPlaneServer) -> None:
        async with Client(server.config.url, api_key=ADMIN) as admin:
            created = await admin.core.keys.create(["tasks:read"], expires_in=3600, name="dashboard")
            assert created.key.startswith(f"llama_{created.key_id}_")
            assert created.created_by == "admin key"
            async with Client(server.config.url, api_key=created.key) as reader:
                assert await reader.core.services.list() == []
                with pytest.raises(PermissionDeniedError, match="tasks:write"):
                    await reader.core.sessions.create()
                with pytest.raises(PermissionDeniedError, match="admin"):
                    await reader.core.keys.create(["admin"], expires_in=None)
            (listed,) = [key async for key in admin.core.keys.list()]
            assert (listed.key_id, listed.name, listed.scopes) == (
                created.key_id,
                "dashboard",
                ["tasks:read"],
            )
            assert created.key not in repr(created)

    async def test_the_secret_is_shown_once_and_stored_nowhere(
        self, server: ControlPlaneServer, tmp_path: Path
    ) -> None:
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        body = b'{"scopes": ["admin"], "expires_in_seconds": null}'
        answer = await send(server.config.url, "POST", "/keys", headers, body)
        assert answer.headers["cache-control"] == "no-store"
        key = pydantic_core.from_json(answer.body)["key"]
        shown = await send(server.config.url, "GET", "/keys", {"Authorization": f"Bearer {key}"})
        assert shown.status == 200
        assert key.rpartition("_")[2].encode() not in shown.body
        await server.close()
        for file in tmp_path.iterdir():  # noqa: ASYNC240 - a few small files
            assert key[-20:].encode() not in file.read_bytes()

    async def test_a_revoked_key_is_refused_at_once(self, server: ControlPlaneServer) -> None:
        async with Client(server.config.url, api_key=ADMIN) as admin:
            created = await admin.core.keys.create(["tasks:read"], expires_in=None)
            async with Client(server.config.url, api_key=created.key) as reader:
                await reader.core.services.list()
                revoked = await admin.core.keys.revoke(created.key_id)
                with pytest.raises(AuthenticationError):
                    await reader.core.services.list()
            assert revoked.revoked_at is not None
            assert await admin.core.keys.revoke(created.key_id) == revoked
            with pytest.raises(ApiKeyNotFoundError):
                await admin.core.keys.revoke("000000000000")

    async def test_all_wrong_keys_get_the_same_answer(self, server: ControlPlaneServer) -> None:
        async with Client(server.config.url, api_key=ADMIN) as admin:
            valid = await admin.core.keys.create(["admin"], expires_in=None)
            revoked = await admin.core.keys.create(["admin"], expires_in=None)
            await admin.core.keys.revoke(revoked.key_id)
            expired = await admin.core.keys.create(["admin"], expires_in=0.001)
        unknown = f"llama_{'0' * 12}_{valid.key.rpartition('_')[2]}"
        wrong = valid.key[:-1] + ("A" if valid.key[-1] != "A" else "B")

        async def is_refused() -> bool:
            headers = {"Authorization": f"Bearer {expired.key}"}
            return (await send(server.config.url, "GET", "/keys", headers)).status == 401

        await eventually(is_refused)
        answers = set()
        for key in (revoked.key, expired.key, unknown, wrong, "nothing like a key"):
            headers = {"Authorization": f"Bearer {key}"}
            answer = await send(server.config.url, "GET", "/keys", headers)
            check_problem(answer, 401, "unauthenticated")
            answers.add((answer.body, answer.headers["www-authenticate"]))
        assert len(answers) == 1

    @pytest.mark.parametrize(
        "body",
        [
            {"expires_in_seconds": None},
            {"scopes": [], "expires_in_seconds": None},
            {"scopes": ["everything"], "expires_in_seconds": None},
            {"scopes": ["admin"]},
            {"scopes": ["admin"], "expires_in_seconds": 0},
            {"scopes": ["admin"], "expires_in_seconds": None, "unknown": "x"},
            {"scopes": ["admin"], "expires_in_seconds": None, "tenant": ""},
            {"scopes": ["admin"], "expires_in_seconds": None, "tenant": "a\x1fb"},
            {"scopes": ["admin"], "expires_in_seconds": None, "tenant": "../b"},
            {"scopes": ["services:host"], "expires_in_seconds": None, "tenant": "acme"},
            {"scopes": ["admin"], "expires_in_seconds": None, "subject": "zoe"},
            {"scopes": ["tasks:read"], "expires_in_seconds": None, "subject": ""},
            {"scopes": ["admin"], "expires_in_seconds": None, "name": "two\nlines"},
        ],
    )
    async def test_a_malformed_key_is_not_created(
        self, server: ControlPlaneServer, body: dict[str, Any]
    ) -> None:
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        answer = await send(server.config.url, "POST", "/keys", headers, pydantic_core.to_json(body))
        check_problem(answer, 422, "invalid_request")


FORGED: list[Any] = [
    [1, "\ud800", "task", "t", ["tasks:read"], 9 * 10**15],
    [1, "0" * 12 + "\0", "task", "t", ["tasks:read"], 9 * 10**15],
    [1, "0" * 12 + "\n", "task", "t", ["tasks:read"], 9 * 10**15],
    [1, "0" * 12, "task", "\ud800", ["tasks:read"], 9 * 10**15],
    [1, "0" * 12, "task", "t\0", ["tasks:read"], 9 * 10**15],
    [1, "0" * 12, "task", "", ["tasks:read"], 9 * 10**15],
    [1, "0" * 12, "task", "t", ["tasks:read", 1], 9 * 10**15],
    [1, "0" * 12, "task", "t", "tasks:read", 9 * 10**15],
    [1, "0" * 12, "task", "t", {"tasks:read": 1}, 9 * 10**15],
    [1, "0" * 12, "task", "t", ["tasks:read"], "9000000000000000"],
    [1, "0" * 12, "task", "t", ["tasks:read"], 1e400],
    [1, "0" * 12, "task", "t", ["tasks:read"], True],
    [1, "0" * 12, ["task"], "t", ["tasks:read"], 9 * 10**15],
    [1.0, "0" * 12, "task", "t", ["tasks:read"], 9 * 10**15],
    [True, "0" * 12, "task", "t", ["tasks:read"], 9 * 10**15],
    {"1": 1},
]


def forged(values: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
    return f"llamatoken_{payload}.{'x' * 43}"


@pytest.mark.parametrize("values", FORGED, ids=range(len(FORGED)))
def test_a_forged_token_is_malformed(values: Any) -> None:
    assert read_token(forged([1, "0" * 12, "task", "t", ["tasks:read"], 9 * 10**15])) is not None
    assert read_token(forged(values)) is None


async def test_a_forged_token_is_refused_and_no_fault_of_the_server(server: ControlPlaneServer) -> None:
    for values in FORGED[:5]:
        headers = {"Authorization": f"Bearer {forged(values)}"}
        check_problem(await send(server.config.url, "GET", "/keys", headers), 401, "unauthenticated")
        assert (await send(server.config.url, "GET", "/health/live", headers)).status == 200


@pytest.mark.parametrize("path", ["/events", "/tasks/t/events"])
@pytest.mark.parametrize("ends_by", ["expiry", "revocation"])
async def test_a_stream_ends_with_its_key(
    server: ControlPlaneServer, path: str, ends_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "RECHECK_SECONDS", 0.2)
    for module in (stream_hub, feed_requests):
        monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.2)
    await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
    async with Client(server.config.url, api_key=ADMIN) as admin:
        body = pydantic_core.to_json({"task_id": "t", "service_name": "echo", "arguments": {}})
        posted = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        assert (await send(server.config.url, "POST", "/tasks", posted, body)).status < 300
        lifetime = 2.0 if ends_by == "expiry" else None
        key = await admin.core.keys.create(["tasks:read"], expires_in=lifetime)
        headers = {"Authorization": f"Bearer {key.key}"}
        stream = asyncio.create_task(send(server.config.url, "GET", path, headers))
        if ends_by == "revocation":
            assert not (await asyncio.wait({stream}, timeout=1.0))[0]
            await admin.core.keys.revoke(key.key_id)
        async with asyncio.timeout(30):
            assert (await stream).status == 200


class TestTheCallersOfKeys:
    async def test_few_requests_read_the_store(self, store: StateStore) -> None:
        clock = Clock()
        callers = KeyCallers(store, clock=clock)
        key = (await ApiKeys(store, callers).create(READ, by="test")).key
        first = await callers.caller_of(key)
        assert first is not None
        assert first.scopes == {"tasks:read"}
        await store.close()
        for _ in range(100):
            assert await callers.caller_of(key) is first
        clock.now += KNOWN_SECONDS
        with pytest.raises(ConnectionError):
            await callers.caller_of(key)
        assert callers.has_seen(key)

    async def test_a_revocation_by_others_is_seen_when_it_is_told(self, store: StateStore) -> None:
        clock = Clock()
        callers = KeyCallers(store, clock=clock)
        others = ApiKeys(store, KeyCallers(store))
        created = await others.create(READ, by="test")
        assert await callers.caller_of(created.key) is not None
        await others.revoke(created.key_id)
        callers.forget()
        assert await callers.caller_of(created.key) is None
        assert not callers.has_seen(created.key)

    async def test_a_revocation_that_is_not_told_is_seen_after_some_seconds(self, store: StateStore) -> None:
        clock = Clock()
        callers = KeyCallers(store, clock=clock)
        others = ApiKeys(store, KeyCallers(store))
        created = await others.create(READ, by="test")
        assert await callers.caller_of(created.key) is not None
        await others.revoke(created.key_id)
        clock.now += KNOWN_SECONDS
        assert await callers.caller_of(created.key) is None

    async def test_a_key_expires_by_the_clock_of_the_store(self, store: StateStore) -> None:
        callers = KeyCallers(store)
        short = NewApiKey(scopes=[AccessScope.ADMIN], expires_in_seconds=0.3)
        created = await ApiKeys(store, callers).create(short, by="test")
        assert created.expires_at is not None
        assert abs(created.expires_at - datetime.now(UTC)) < timedelta(seconds=60)
        assert await callers.caller_of(created.key) is not None

        async def is_unknown() -> bool:
            return await callers.caller_of(created.key) is None

        await eventually(is_unknown, seconds=KNOWN_SECONDS)
        assert datetime.now(UTC) >= created.expires_at

    async def test_a_look_up_that_began_before_a_revocation_is_not_remembered(self) -> None:
        async with await SlowStore.connect("sqlite:///:memory:") as store:
            callers = KeyCallers(store)
            keys = ApiKeys(store, callers)
            created = await keys.create(READ, by="test")
            looking = asyncio.create_task(callers.caller_of(created.key))
            await store.has_read.wait()
            await keys.revoke(created.key_id)
            later = asyncio.create_task(callers.caller_of(created.key))
            store.answers.set()
            assert await looking is not None
            assert await later is None
            assert await callers.caller_of(created.key) is None

    async def test_what_is_known_is_bounded(self, store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_callers, "MAX_KNOWN_KEYS", 3)
        callers = KeyCallers(store)
        keys = ApiKeys(store, callers)
        created = [(await keys.create(READ, by="test")).key for _ in range(5)]
        for key in created:
            assert await callers.caller_of(key) is not None
        assert [callers.has_seen(key) for key in created] == [False, False, True, True, True]
        assert await callers.caller_of("x") is None
        assert not callers.has_seen("x")

    async def test_requests_at_the_same_time_share_a_look_up(self, store: StateStore) -> None:
        callers = KeyCallers(store)
        created = await ApiKeys(store, callers).create(READ, by="test")
        found = await asyncio.gather(*(callers.caller_of(created.key) for _ in range(50)))
        assert len({id(each) for each in found}) == 1
        assert isinstance(found[0], Caller)


async def test_the_keys_are_bounded_and_ended_ones_make_room(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS", 2)
    keys = ApiKeys(store, KeyCallers(store))
    first = await keys.create(READ, by="test")
    await keys.create(READ, by="test")
    with pytest.raises(ConflictError):
        await keys.create(READ, by="test")
    await keys.revoke(first.key_id)
    monkeypatch.setattr(api_keys, "_KEPT_AFTER_END", timedelta())
    await keys.create(READ, by="test")


async def test_a_tenant_has_a_share_of_the_keys(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_TENANT_KEYS", 2)
    keys = ApiKeys(store, KeyCallers(store))
    own = READ.model_copy(update={"tenant": "acme"})
    first = await keys.create(own, by="operator")
    await keys.create(READ, by="ann", tenant="acme")
    for options in ({"new": own}, {"new": READ, "tenant": "acme"}):
        with pytest.raises(ConflictError, match="the tenant has 2 keys"):
            await keys.create(by="test", **options)
    await keys.create(READ, by="test")
    await keys.create(READ, by="test", tenant="beta")
    await keys.revoke(first.key_id, tenant="acme")
    with pytest.raises(ConflictError):  # it makes room when it is not listed any more
        await keys.create(own, by="test")
    monkeypatch.setattr(api_keys, "_KEPT_AFTER_END", timedelta())
    await keys.create(own, by="test")


async def test_keys_are_listed_page_by_page(store: StateStore) -> None:
    keys = ApiKeys(store, KeyCallers(store))
    created = [(await keys.create(READ, by="test")).key_id for _ in range(5)]
    listed: list[str] = []
    cursor: str | None = None
    while True:
        page = await keys.list(cursor=cursor, limit=2)
        listed += [key.key_id for key in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert listed == created[::-1]
    with pytest.raises(InvalidRequestError):
        await keys.list(cursor="x")


async def test_a_key_is_revoked_at_all_control_planes(postgresql_uri: str) -> None:
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)))
        urls = []
        for number in range(2):
            config = ControlPlaneConfig(
                port=0,
                state_store_uri=postgresql_uri,
                authentication="keys",
                admin_key=SecretStr(ADMIN),
                topic_namespace=f"plane{number}",
            )
            server = ControlPlaneServer(queue.local_queue(), config=config)
            await stack.enter_async_context(server)
            urls.append(server.config.url)
        admin = await stack.enter_async_context(Client(urls[0], api_key=ADMIN))
        for _ in range(5):
            created = await admin.core.keys.create(["tasks:read"], expires_in=None)
            readers = [await stack.enter_async_context(Client(url, api_key=created.key)) for url in urls]
            for reader in readers:
                await reader.core.services.list()
            loop = asyncio.get_running_loop()
            await admin.core.keys.revoke(created.key_id)
            revoked_at = loop.time()
            with pytest.raises(AuthenticationError):
                await readers[0].core.services.list()

            async def is_refused(reader: Client = readers[1]) -> bool:
                try:
                    await reader.core.services.list()
                except AuthenticationError:
                    return True
                return False

            await eventually(is_refused)
            # Long before it would be looked up again without a notice.
            assert loop.time() - revoked_at < KNOWN_SECONDS / 2
