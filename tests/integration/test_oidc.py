"""Tokens of an OpenID Connect issuer: a real one over HTTP, with real keys."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.errors import AuthenticationError, ConfigError, PermissionDeniedError, UnavailableError
from llama_deploy.web.edge.oidc_callers import KEEP_SECONDS, REFETCH_SECONDS, OidcCallers, OidcSettings
from llama_deploy.web.http_server import HttpServer

AUDIENCE = "llama-deploy"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def jwk(key: Any, key_id: str) -> dict[str, Any]:
    algorithm = (
        jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    )
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": key_id, "use": "sig"}


@dataclass
class Issuer:
    """Publishes its keys over HTTP, and signs tokens."""

    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk(RSA, "r1"), jwk(EC, "e1")])
    url: str = ""
    fetches: int = 0
    fails: bool = False
    on_fetch: Callable[[], None] = lambda: None

    async def configuration(self, _request: Request) -> Response:
        return JSONResponse({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def published(self, _request: Request) -> Response:
        self.fetches += 1
        self.on_fetch()
        return Response(status_code=500) if self.fails else JSONResponse({"keys": self.keys})

    def token(
        self, key: Any = RSA, *, kid: str | None = "r1", algorithm: str = "RS256", **claims: Any
    ) -> str:
        now = time.time()
        given = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ann",
            "exp": now + 300,
            "scope": "openid tasks:read",
            **claims,
        }
        kept = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(kept, key, algorithm=algorithm, headers={} if kid is None else {"kid": kid})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    routes = [
        Route("/realm/.well-known/openid-configuration", issuer.configuration),
        Route("/realm/keys", issuer.published),
    ]
    async with await HttpServer.start(Starlette(routes=routes), host="127.0.0.1", port=0) as server:
        issuer.url = f"http://127.0.0.1:{server.port}/realm"
        yield issuer


@pytest.fixture
def callers(issuer: Issuer) -> OidcCallers:
    return OidcCallers(OidcSettings(issuer.url, AUDIENCE))


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(RSA, "r1", "RS256"), (EC, "e1", "ES256")])
async def test_a_token_names_its_caller(
    issuer: Issuer, callers: OidcCallers, key: Any, kid: str, algorithm: str
) -> None:
    found = await callers.caller_of(issuer.token(key, kid=kid, algorithm=algorithm))
    assert found is not None
    assert found.subject == "ann"
    assert found.scopes == {"tasks:read"}


def signed_with_public_key(issuer: Issuer) -> str:
    """Return a token whose signature is a hash that everybody can compute."""
    _, payload, _ = issuer.token().split(".")
    header = _encoded(json.dumps({"alg": "HS256", "kid": "r1", "typ": "JWT"}).encode())
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return f"{header}.{payload}.{_encoded(hmac.digest(pem, f'{header}.{payload}'.encode(), 'sha256'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


WRONG: dict[str, Callable[[Issuer], str]] = {
    "expired": lambda issuer: issuer.token(exp=time.time() - 61),
    "not valid yet": lambda issuer: issuer.token(nbf=time.time() + 61),
    "other audience": lambda issuer: issuer.token(aud="another program"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "other issuer": lambda issuer: issuer.token(iss=f"{issuer.url}/other"),
    "no issuer": lambda issuer: issuer.token(iss=None),
    "no end": lambda issuer: issuer.token(exp=None),
    "no subject": lambda issuer: issuer.token(sub=None),
    "empty subject": lambda issuer: issuer.token(sub=""),
    "subject that is no text": lambda issuer: issuer.token(sub=["ann"]),
    "subject with half a character": lambda issuer: issuer.token(sub="\ud800"),
    "subject with a control character": lambda issuer: issuer.token(sub="ann\0"),
    "long subject": lambda issuer: issuer.token(sub="a" * 256),
    "end that is no number": lambda issuer: issuer.token(exp=[1]),
    "end without an end": lambda issuer: issuer.token(exp=math.inf),
    "key of another": lambda issuer: issuer.token(OTHER),
    "unknown key": lambda issuer: issuer.token(OTHER, kid="x"),
    "no key id": lambda issuer: issuer.token(kid=None),
    "key of another algorithm": lambda issuer: issuer.token(RSA, kid="e1"),
    "signed with the public key": signed_with_public_key,
    "not signed": lambda issuer: issuer.token(None, algorithm="none"),
    "cut off": lambda issuer: issuer.token()[:-5],
    "without a signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    "no token": lambda _: "a.b.c",
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_token_that_is_not_valid_names_nobody(
    issuer: Issuer, callers: OidcCallers, wrong: str
) -> None:
    assert await callers.caller_of(WRONG[wrong](issuer)) is None
    assert await callers.caller_of(issuer.token()) is not None


async def test_a_token_may_end_in_a_very_far_future(issuer: Issuer, callers: OidcCallers) -> None:
    token = issuer.token(exp=10**400)
    for _ in range(2):
        assert await callers.caller_of(token) is not None


async def test_clocks_may_differ_a_little(issuer: Issuer, callers: OidcCallers) -> None:
    now = time.time()
    assert await callers.caller_of(issuer.token(exp=now - 30, nbf=now + 30)) is not None


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("tasks:read  inbox:answer other", {"tasks:read", "inbox:answer"}),
        (["tasks:write", "*", 3], {"tasks:write"}),
        ("*", set()),
        (["tasks:write", ["tasks:read"], {}, None], {"tasks:write"}),
        ({"tasks:read": 1}, set()),
        (7, set()),
        (None, set()),
    ],
)
async def test_only_scopes_of_ours_count(
    issuer: Issuer, callers: OidcCallers, claim: object, scopes: set[str]
) -> None:
    found = await callers.caller_of(issuer.token(scope=claim))
    assert found is not None
    assert found.scopes == scopes


async def test_scopes_may_be_in_another_claim(issuer: Issuer) -> None:
    callers = OidcCallers(OidcSettings(issuer.url, AUDIENCE, "roles"))
    found = await callers.caller_of(issuer.token(roles=["admin"]))
    assert found is not None
    assert found.may_do_all


async def test_a_new_key_is_fetched_and_a_removed_one_forgotten(issuer: Issuer) -> None:
    clock = Clock()
    callers = OidcCallers(OidcSettings(issuer.url, AUDIENCE), clock=clock)
    assert await callers.caller_of(issuer.token()) is not None
    assert issuer.fetches == 1
    issuer.keys = [jwk(OTHER, "r2")]
    for number in range(50):  # others' tokens with keys that there are not
        assert await callers.caller_of(issuer.token(OTHER, kid=f"x{number}")) is None
    assert issuer.fetches == 1
    clock.now += REFETCH_SECONDS
    assert await callers.caller_of(issuer.token(OTHER, kid="r2")) is not None
    assert await callers.caller_of(issuer.token(sub="another")) is None
    assert issuer.fetches == 2


async def test_known_keys_outlast_the_issuer_for_a_while(issuer: Issuer) -> None:
    clock = Clock()
    callers = OidcCallers(OidcSettings(issuer.url, AUDIENCE), clock=clock)
    issuer.fails = True
    with pytest.raises(UnavailableError):
        await callers.caller_of(issuer.token())
    issuer.fails = False
    clock.now += REFETCH_SECONDS
    assert await callers.caller_of(issuer.token()) is not None
    issuer.fails = True
    clock.now += KEEP_SECONDS - 1
    assert await callers.caller_of(issuer.token(sub="bob")) is not None
    clock.now += 1
    with pytest.raises(UnavailableError):
        await callers.caller_of(issuer.token())


async def test_those_who_wait_for_an_issuer_that_is_slow_do_not_ask_it_one_after_the_other(
    issuer: Issuer,
) -> None:
    clock = Clock()
    callers = OidcCallers(OidcSettings(issuer.url, AUDIENCE), clock=clock)
    issuer.fails = True

    def take_long() -> None:
        clock.now += 2 * REFETCH_SECONDS

    issuer.on_fetch = take_long
    tokens = [issuer.token(sub=f"user {number}") for number in range(4)]
    found = await asyncio.gather(*map(callers.caller_of, tokens), return_exceptions=True)
    assert [type(each) for each in found] == [UnavailableError] * 4
    assert issuer.fetches == 1


def test_an_issuer_is_reached_over_tls() -> None:
    with pytest.raises(ConfigError, match="https"):
        OidcSettings("http://issuer.example", AUDIENCE)


@pytest.mark.parametrize(
    "fields",
    [
        {"authentication": "keys", "oidc_issuer": "https://issuer.example"},
        {"authentication": "keys", "oidc_audience": AUDIENCE},
        {"oidc_issuer": "https://issuer.example", "oidc_audience": AUDIENCE},
    ],
)
async def test_half_of_the_settings_are_refused(fields: dict[str, Any]) -> None:
    async with SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue:
        with pytest.raises(ConfigError):
            ControlPlaneServer(queue.local_queue(), config=ControlPlaneConfig(**fields))


async def test_a_control_plane_accepts_tokens_beside_keys(issuer: Issuer, tmp_path: Path) -> None:
    admin_key = "admin-key-of-thirty-two-characters-or-more"
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
        authentication="keys",
        admin_key=SecretStr(admin_key),
        oidc_issuer=issuer.url,
        oidc_audience=AUDIENCE,
    )
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue,
        ControlPlaneServer(queue.local_queue(), config=config) as server,
    ):
        async with Client(server.config.url, api_key=issuer.token()) as client:
            assert await client.core.services.list() == []
            with pytest.raises(PermissionDeniedError, match="tasks:write"):
                await client.core.sessions.create()
            with pytest.raises(PermissionDeniedError, match="API key of the state store"):
                await client.core.keys.issue_token("task", "t", scopes=["tasks:read"])
        async with Client(server.config.url, api_key=issuer.token(aud="another program")) as client:
            with pytest.raises(AuthenticationError):
                await client.core.services.list()
        async with Client(server.config.url, api_key=admin_key) as client:
            assert await client.core.services.list() == []


@pytest.mark.parametrize("tenant", ["acme", "a.b-c_1", "x" * 63])
async def test_a_token_may_name_the_tenant_of_its_caller(issuer: Issuer, tenant: str) -> None:
    settings = OidcSettings(issuer.url, AUDIENCE, tenant_claim="org", is_bound=True)
    found = await OidcCallers(settings).caller_of(issuer.token(org=tenant))
    assert found is not None
    assert found.owner == (tenant, "ann")


@pytest.mark.parametrize(
    "tenant", [None, "", " ", "a b", "a\x1fb", "a/b", "-a", "ä", "x" * 64, "a\n", 7, ["acme"], {"acme": 1}]
)
async def test_a_token_without_a_valid_tenant_is_refused(issuer: Issuer, tenant: object) -> None:
    callers = OidcCallers(OidcSettings(issuer.url, AUDIENCE, tenant_claim="org"))
    assert await callers.caller_of(issuer.token(org=tenant)) is None


async def test_users_of_an_issuer_work_with_what_is_theirs(issuer: Issuer, tmp_path: Path) -> None:
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
        authentication="keys",
        oidc_issuer=issuer.url,
        oidc_audience=AUDIENCE,
        oidc_tenant_claim="org",
        oidc_bound=True,
    )
    scope = "tasks:read tasks:write"
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue,
        ControlPlaneServer(queue.local_queue(), config=config) as server,
    ):
        clients = {
            name: Client(server.config.url, api_key=issuer.token(sub=name[0], org=name[1], scope=scope))
            for name in (("ann", "acme"), ("bob", "acme"), ("ann", "beta"))
        }
        made = {name: (await client.core.sessions.create()).id for name, client in clients.items()}
        for name, client in clients.items():
            assert [each.id for each in await client.core.sessions.list()] == [made[name]]
            await client.close()
