"""Which keys a server accepts, and how many wrong ones it bears."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from llama_deploy.errors import AuthenticationError, OverloadedError
from llama_deploy.testing.conditions import eventually
from llama_deploy.types.callers import Caller
from llama_deploy.web.edge import failure_limit
from llama_deploy.web.edge.authentication import Anonymous
from llama_deploy.web.edge.bearer_tokens import BearerTokens, FixedKeys, shared_key
from llama_deploy.web.edge.failure_limit import BURST, SECONDS_PER_FAILURE, FailureLimit
from llama_deploy.web.edge.server_key import ServerKey

ANN = Caller("ann", "", frozenset({"tasks:read"}))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SeenKeys(FixedKeys):
    """Keys that were all looked up before."""

    def has_seen(self, key: str) -> bool:
        return key == "known"


def request(*authorizations: str, address: str = "10.0.0.1") -> dict[str, Any]:
    headers = [(b"host", b"x"), *((b"authorization", each.encode()) for each in authorizations)]
    return {"type": "http", "headers": headers, "client": (address, 5)}


@pytest.mark.parametrize("sent", ["Bearer good", "bearer good", "BEARER   good  "])
async def test_a_valid_key_names_its_caller(sent: str) -> None:
    assert await BearerTokens([FixedKeys({"good": ANN})]).authenticate(request(sent)) is ANN


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [""],
        ["good"],
        ["Bearer"],
        ["Bearer goo"],
        ["Bearer good good"],
        ["Bearer good\x00"],
        ["Basic good"],
        ["Bearer good", "Bearer good"],
        ["Bearer " + "g" * 10_000],
    ],
)
async def test_everything_else_is_refused(sent: list[str]) -> None:
    with pytest.raises(AuthenticationError):
        await BearerTokens([FixedKeys({"good": ANN})]).authenticate(request(*sent))


async def test_wrong_keys_are_limited_by_address_and_known_keys_are_not() -> None:
    clock = Clock()
    tokens = BearerTokens([SeenKeys({"known": ANN, "new": ANN})], clock=clock)
    for number in range(BURST):
        with pytest.raises(AuthenticationError):
            await tokens.authenticate(request(f"Bearer wrong-{number}"))
    for key in ("wrong", "new"):
        with pytest.raises(OverloadedError) as refused:
            await tokens.authenticate(request(f"Bearer {key}"))
        assert 0 < refused.value.retry_after <= SECONDS_PER_FAILURE
    assert await tokens.authenticate(request("Bearer known")) is ANN
    assert await tokens.authenticate(request("Bearer new", address="10.0.0.2")) is ANN
    clock.now += SECONDS_PER_FAILURE
    assert await tokens.authenticate(request("Bearer new")) is ANN


async def test_wrong_keys_lock_out_no_key_that_needs_no_look_up() -> None:
    tokens = BearerTokens([FixedKeys({"good": ANN})], clock=Clock())
    for number in range(BURST):
        with pytest.raises(AuthenticationError):
            await tokens.authenticate(request(f"Bearer wrong-{number}"))
    with pytest.raises(OverloadedError):
        await tokens.authenticate(request("Bearer wrong"))
    assert await tokens.authenticate(request("Bearer good")) is ANN


class CountedKeys(FixedKeys):
    looked_up = 0

    async def caller_of(self, key: str) -> Caller | None:
        self.looked_up += 1
        return await super().caller_of(key)

    def has_looked_up(self, times: int) -> bool:
        return self.looked_up == times


async def test_a_program_that_repeats_a_wrong_key_locks_nobody_out() -> None:
    clock = Clock()
    keys = CountedKeys({"new": ANN})
    tokens = BearerTokens([keys], clock=clock)
    for _ in range(1000):
        clock.now += 0.1
        with pytest.raises(AuthenticationError):
            await tokens.authenticate(request("Bearer revoked"))
    assert keys.looked_up <= 1 + 100 / failure_limit.REFUSED_SECONDS
    assert await tokens.authenticate(request("Bearer new")) is ANN


def test_the_refused_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_limit, "MAX_REFUSED_KEYS", 10)
    refused = failure_limit.RefusedKeys(Clock())
    for number in range(100):
        refused.add(bytes([number]))
    assert [refused.has(bytes([number])) for number in (0, 89, 90, 99)] == [False, False, True, True]


class SlowKeys(CountedKeys):
    """Keys whose look-ups end when they are let through."""

    def __init__(self, callers: dict[str, Caller]) -> None:
        super().__init__(callers)
        self.go = asyncio.Event()

    async def caller_of(self, key: str) -> Caller | None:
        found = await super().caller_of(key)
        await self.go.wait()
        return found

    def has_seen(self, key: str) -> bool:  # noqa: ARG002 - the protocol's
        return False


async def test_wrong_keys_at_the_same_time_are_limited_too() -> None:
    clock = Clock()
    keys = SlowKeys({"good": ANN})
    tokens = BearerTokens([keys], clock=clock)
    async with asyncio.TaskGroup() as group:
        sent = [
            group.create_task(outcome_of(tokens.authenticate(request(f"Bearer wrong-{number}"))))
            for number in range(300)
        ]
        await eventually(lambda: sum(each.done() for each in sent) == 300 - BURST)
        assert keys.looked_up == BURST
        keys.go.set()
    assert sum(isinstance(each.result(), OverloadedError) for each in sent) == 300 - BURST
    clock.now += SECONDS_PER_FAILURE
    assert await tokens.authenticate(request("Bearer good")) is ANN


async def test_valid_keys_use_nothing_of_the_limit() -> None:
    keys = SlowKeys({f"good-{number}": ANN for number in range(3 * BURST)})
    keys.go.set()
    tokens = BearerTokens([keys], clock=Clock())
    for number in range(3 * BURST):
        assert await tokens.authenticate(request(f"Bearer good-{number}")) is ANN
    keys.go.clear()
    async with asyncio.TaskGroup() as group:
        same = [group.create_task(tokens.authenticate(request("Bearer good-1"))) for _ in range(3 * BURST)]
        await eventually(lambda: keys.looked_up == 6 * BURST)
        keys.go.set()
    assert {each.result() for each in same} == {ANN}


async def test_a_look_up_that_ends_without_an_answer_uses_nothing_of_the_limit() -> None:
    keys = SlowKeys({"good": ANN})
    tokens = BearerTokens([keys], clock=Clock())
    for number in range(3 * BURST):
        asking = asyncio.create_task(tokens.authenticate(request(f"Bearer wrong-{number}")))
        await eventually(partial(keys.has_looked_up, number + 1))
        asking.cancel()
        assert isinstance(await outcome_of(asking), asyncio.CancelledError)
    keys.go.set()
    assert await tokens.authenticate(request("Bearer good")) is ANN


class FaultyKeys(CountedKeys):
    def has_seen(self, key: str) -> bool:  # noqa: ARG002 - the protocol's
        return False

    async def caller_of(self, key: str) -> Caller | None:
        await super().caller_of(key)
        raise ValueError("no such text")


async def test_a_key_on_which_a_source_fails_is_refused_and_counted() -> None:
    keys = FaultyKeys({})
    tokens = BearerTokens([keys], clock=Clock())
    for number in range(BURST):
        with pytest.raises(AuthenticationError):
            await tokens.authenticate(request(f"Bearer wrong-{number}"))
    with pytest.raises(OverloadedError):
        await tokens.authenticate(request("Bearer wrong"))
    assert keys.looked_up == BURST


async def outcome_of(asking: Awaitable[Caller]) -> Caller | BaseException:
    return (await asyncio.gather(asking, return_exceptions=True))[0]


def test_failures_do_not_add_up_for_ever() -> None:
    clock = Clock()
    limit = FailureLimit(clock)
    for _ in range(100 * BURST):
        limit.note("10.0.0.1")
    clock.now += SECONDS_PER_FAILURE
    limit.reserve("10.0.0.1")


def test_an_ipv4_client_of_an_ipv6_socket_has_a_count_of_its_own() -> None:
    limit = FailureLimit(Clock())
    for _ in range(BURST):
        limit.note("::ffff:10.0.0.1")
    limit.reserve("::ffff:10.0.0.2")
    for same in ("::ffff:10.0.0.1", "10.0.0.1"):
        with pytest.raises(OverloadedError):
            limit.reserve(same)


def test_an_ipv6_client_has_one_count_for_all_its_addresses() -> None:
    limit = FailureLimit(Clock())
    for number in range(BURST):
        limit.note(f"2001:db8::{number:x}")
    with pytest.raises(OverloadedError):
        limit.reserve("2001:db8::ffff")
    limit.reserve("2001:db8:1::1")


def test_the_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_limit, "MAX_ADDRESSES", 10)
    limit = FailureLimit(Clock())
    for number in range(100):
        limit.note(f"host-{number}")
    assert len(limit._forgotten_at) == 10


async def test_a_shared_key_has_all_rights() -> None:
    authenticator = shared_key(SecretStr("k" * 32))
    assert (await authenticator.authenticate(request("Bearer " + "k" * 32))).may_do_all
    assert isinstance(shared_key(None), Anonymous)


@pytest.mark.parametrize("key", ["", "k" * 31, "k" * 31 + " ", "k" * 31 + "\n", "é" * 40])
def test_a_key_in_the_settings_is_long_and_one_word(key: str) -> None:
    class Settings(BaseModel, hide_input_in_errors=True):
        key: ServerKey

    with pytest.raises(ValidationError) as refused:
        Settings(key=SecretStr(key))
    assert not key or key not in str(refused.value)
    assert "k" * 32 not in repr(Settings(key=SecretStr("k" * 32)))
