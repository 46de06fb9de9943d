"""The layers before the routes, called directly."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_deploy import ControlPlaneConfig, SimpleMessageQueueConfig, WorkflowServiceConfig
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.callers import ANONYMOUS, Caller
from llama_deploy.web.edge.authorities import (
    Authority,
    Origin,
    parse_authority,
    parse_host_name,
    parse_origin,
)
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.edge.tracing import TraceParent, parse_traceparent
from llama_deploy.web.shortcuts import Call

LIMIT = 1000
JSON = ("content-type", "application/json")
APP = "https://app.example"


class Reached(Exception):  # noqa: N818 - not an error
    """The request has passed all layers."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-read", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": b""})


def edge(app: ASGIApp = application, *, hosts: tuple[str, ...] = (), **fields: Any) -> ASGIApp:
    settings = EdgeSettings(env_prefix="TEST_", hosts=hosts, max_body_bytes=LIMIT, **fields)
    return build_edge(app, settings)


async def serve(
    app: ASGIApp,
    *headers: tuple[str, str],
    method: str = "POST",
    body: tuple[bytes, ...] = (b"",),
    host: str | None = "localhost:8000",
    version: str = "1.1",
) -> list[Message]:
    """Return what the application sends."""
    given = [*headers, *([("host", host)] if host is not None else [])]
    scope = {
        "type": "http",
        "http_version": version,
        "method": method,
        "path": "/x",
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given],
    }
    parts = list(body)
    sent: list[Message] = []

    async def receive() -> Message:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def status(app: ASGIApp, *headers: tuple[str, str], **how: Any) -> int:
    return int((await serve(app, *headers, **how))[0]["status"])


# -- hosts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"example.com", Authority("example.com", None)),
        (b"Example.COM.:80", Authority("example.com", 80)),
        (b"example.com:", Authority("example.com", None)),
        (b"under_score", Authority("under_score", None)),
        (b"127.0.0.1:8000", Authority("127.0.0.1", 8000)),
        (b"[::1]:8000", Authority("::1", 8000)),
        (b"[0:0:0:0:0:0:0:1]", Authority("::1", None)),
        (b"", None),
        (b":80", None),
        (b"::1", None),
        (b"[fe80::1%25eth0]", None),
        (b"[::1", None),
        (b"[example.com]", None),
        (b"a:65536", None),
        (b"a:b", None),
        (b"a:1:2", None),
        (b"a b", None),
        (b"a,b", None),
        (b"user@a", None),
        (b"a/b", None),
        (b"a..b", None),
        (b"-a", None),
        ("ä".encode(), None),
        (b"x" * 64, None),
        (b".".join([b"x" * 60] * 5), None),
    ],
)
def test_a_host_is_read(value: bytes, expected: Authority | None) -> None:
    assert parse_authority(value) == expected


@given(st.binary(max_size=40))
@example(b"[::1]:0")
def test_any_bytes_are_a_host_or_malformed(value: bytes) -> None:
    authority = parse_authority(value)
    if authority is not None:
        assert parse_host_name(authority.host) == authority.host
        assert authority.port is None or 0 <= authority.port <= 65535


@given(st.ip_addresses(), st.none() | st.integers(0, 65535))
def test_every_ip_address_is_recognised(address: Any, port: int | None) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    authority = parse_authority(f"{host}:{port}".encode() if port is not None else host.encode())
    assert authority is not None
    assert authority.is_ip_address
    assert (ipaddress.ip_address(authority.host), authority.port) == (address, port)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.:1",
        "ui.localhost",
        "127.0.0.1:8000",
        "10.1.2.3",
        "[::1]:8000",
        "[2001:db8::1]",
        "own.example",
        "deep.below.example:80",
    ],
)
async def test_trusted_hosts_pass(host: str) -> None:
    assert await status(edge(hosts=("own.example", "*.below.example")), host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "own.example.evil",
        "notown.example",
        "below.example",
        "notlocalhost",
        "localhost.evil",
        "127.0.0.1.nip.io",
        "2130706433",
        "127.1",
    ],
)
async def test_other_hosts_are_misdirected(host: str) -> None:
    refused, body = await serve(edge(hosts=("own.example", "*.below.example", "")), host=host)
    assert refused["status"] == 421
    assert host.encode() in body["body"]
    assert b"TEST_TRUSTED_HOSTS" in body["body"]


async def test_a_star_trusts_every_host() -> None:
    assert await status(edge(hosts=("*",)), host="evil.example") == 200


@pytest.mark.parametrize("host", ["", "a b", "a:b"])
async def test_a_malformed_host_is_a_bad_request(host: str) -> None:
    assert await status(edge(hosts=("*",)), host=host) == 400


async def test_exactly_one_host_is_required() -> None:
    assert await status(edge(), host=None) == 400
    assert await status(edge(), ("host", "localhost"), host="localhost") == 400
    assert await status(edge(), host=None, version="1.0") == 200


# -- origins


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"http://localhost:3000", "http://localhost:3000"),
        (b"HTTPS://App.Example:443", "https://app.example"),
        (b"http://[::1]:80", "http://[::1]"),
        (b"chrome-extension://abc", "chrome-extension://abc"),
        (b"null", "None"),
        (b"", "None"),
        (b"http://", "None"),
        (b"://a", "None"),
        (b"http://a/path", "None"),
        (b"http://a, http://b", "None"),
    ],
)
def test_an_origin_is_read(value: bytes, text: str) -> None:
    assert str(parse_origin(value)) == text


@given(st.binary(max_size=40))
def test_any_bytes_are_an_origin_or_malformed(value: bytes) -> None:
    origin = parse_origin(value)
    assert origin is None or isinstance(parse_origin(str(origin).encode()), Origin)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "http://evil.example")],
        [("origin", "null")],
        [("origin", "http://localhost:3000")],
        [("origin", "http://localhost")],
        [("origin", "capacitor://localhost")],
        [("origin", APP), ("origin", APP)],
        [("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
    ],
)
async def test_pages_of_other_origins_are_refused(headers: list[tuple[str, str]], method: str) -> None:
    app = edge(cors_origins=[APP], allow_navigation=True)
    refused, body = await serve(app, *headers, method=method)
    assert refused["status"] == 403
    assert b"TEST_CORS_ORIGINS" in body["body"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("localhost:8000", []),
        ("localhost:8000", [("origin", "http://localhost:8000"), ("sec-fetch-site", "same-origin")]),
        ("[::1]:8000", [("origin", "http://[::1]:8000")]),
        ("10.0.0.1", [("origin", "https://10.0.0.1")]),
        ("10.0.0.1:443", [("origin", "https://10.0.0.1")]),
        ("localhost:8000", [("origin", APP), ("sec-fetch-site", "cross-site")]),
        ("localhost:8000", [("sec-fetch-site", "none")]),
        ("localhost:8000", [("sec-fetch-site", "same-origin")]),
    ],
)
async def test_own_pages_allowed_pages_and_programs_pass(
    host: str, headers: list[tuple[str, str]], method: str
) -> None:
    assert await status(edge(cors_origins=[APP]), *headers, host=host, method=method) == 200


async def test_a_link_on_another_page_may_lead_to_a_server_with_pages() -> None:
    link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]
    assert await status(edge(allow_navigation=True), *link, method="GET") == 200
    assert await status(edge(allow_navigation=False), *link, method="GET") == 403
    assert await status(edge(allow_navigation=True), *link, method="POST") == 403


async def test_a_star_allows_every_origin() -> None:
    app = edge(cors_origins=["*"])
    assert await status(app, ("origin", "http://evil.example")) == 200
    assert await status(app, ("sec-fetch-site", "cross-site")) == 200


async def test_an_answer_keeps_no_header_of_another_one() -> None:
    async def nothing(_call: Call) -> None:
        return None

    settings = EdgeSettings(env_prefix="", hosts=(), cors_origins=[APP])
    app = build_edge(application, settings, shortcuts={("POST", "/x"): nothing})
    named = (b"access-control-allow-origin", APP.encode())
    assert named in (await serve(app, ("origin", APP)))[0]["headers"]
    assert named not in (await serve(app))[0]["headers"]


# -- bodies


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application",
        "text/json",
        "text/plain; application/json",
        "application/jsonp",
    ],
)
async def test_a_body_that_is_not_declared_as_json_is_refused(content_type: str) -> None:
    length = ("content-length", "2")
    assert await status(edge(), length, ("content-type", content_type), body=(b"{}",)) == 415
    assert await status(edge(), ("transfer-encoding", "chunked"), ("content-type", content_type)) == 415
    assert await status(edge(), length, JSON, ("content-type", content_type), body=(b"{}",)) == 415


async def test_a_body_without_a_type_is_refused_and_no_body_needs_none() -> None:
    assert await status(edge(), ("content-length", "2"), body=(b"{}",)) == 415
    assert await status(edge(), ("content-length", "0")) == 200
    assert await status(edge(), ("content-length", "0"), ("content-type", "text/plain")) == 200
    assert await status(edge()) == 200


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON ; charset=utf-8", "application/merge-patch+json"],
)
async def test_json_passes(content_type: str) -> None:
    headers = [("content-length", "2"), ("content-type", content_type)]
    assert await status(edge(), *headers, body=(b"{}",)) == 200


@pytest.mark.parametrize("length", [str(LIMIT + 1), "9" * 5000])
async def test_a_body_that_declares_too_much_is_refused(length: str) -> None:
    assert await status(edge(), ("content-length", length), JSON) == 413


@pytest.mark.parametrize("shortcut", [False, True])
async def test_a_body_without_a_length_is_counted(shortcut: bool) -> None:  # noqa: FBT001 - a case
    async def length(call: Call) -> bytes:
        return b"%d" % len(call.body)

    settings = EdgeSettings(env_prefix="", hosts=(), max_body_bytes=LIMIT)
    app = build_edge(application, settings, shortcuts={("POST", "/x"): length} if shortcut else {})
    headers = [("transfer-encoding", "chunked"), JSON]
    assert await status(app, *headers, body=(b"x" * 600, b"x" * 400)) == 200
    if shortcut:
        sent = await serve(app, *headers, body=(b"x" * 600, b"x" * 401))
        assert [message.get("status") for message in sent] == [413, None]


async def test_whatever_the_application_answers_to_a_body_that_is_too_large_it_is_413() -> None:
    async def hides_errors(_scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
        except InvalidRequestError:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"bad"})

    sent = await serve(edge(hides_errors), ("transfer-encoding", "chunked"), JSON, body=(b"x" * 1001,))
    assert sent[0]["status"] == 413
    assert b"payload_too_large" in sent[1]["body"]
    assert len(sent) == 2


# -- callers and traces


class ByToken:
    async def authenticate(self, scope: Scope) -> Caller:
        if (b"authorization", b"Bearer good") not in scope["headers"]:
            raise InvalidRequestError("no such key")
        return Caller("alice", "acme", frozenset({"tasks:write"}))


async def state_behind(*headers: tuple[str, str], **fields: Any) -> dict[str, Any]:
    async def reached(scope: Scope, _receive: Receive, _send: Send) -> None:
        raise Reached(scope)

    with pytest.raises(Reached) as caught:
        await serve(edge(reached, **fields), *headers)
    state: dict[str, Any] = caught.value.scope["state"]
    return state


async def test_every_caller_is_anonymous_unless_there_is_an_authenticator() -> None:
    assert (await state_behind())["caller"] == ANONYMOUS


async def test_an_authenticator_names_the_caller_or_refuses() -> None:
    state = await state_behind(("authorization", "Bearer good"), authenticator=ByToken())
    assert state["caller"].tenant == "acme"
    refused, body = await serve(edge(authenticator=ByToken()), ("authorization", "Bearer bad"))
    assert refused["status"] == 422
    assert b"no such key" in body["body"]


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_trace_of_the_caller_is_kept() -> None:
    state = await state_behind(("traceparent", TRACE))
    expected = TraceParent("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", sampled=True)
    assert state["trace_parent"] == expected
    assert "trace_parent" not in await state_behind(("traceparent", "nonsense"))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        TRACE[:-1].encode(),
        TRACE.upper().encode(),
        b"ff" + TRACE[2:].encode(),
        TRACE.encode() + b"-more",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
    ],
)
def test_an_invalid_traceparent_is_ignored(value: bytes) -> None:
    assert parse_traceparent(value) is None


def test_a_later_version_of_traceparent_may_have_more_fields() -> None:
    parent = parse_traceparent(b"01" + TRACE[2:-1].encode() + b"0-more")
    assert parent is not None
    assert not parent.sampled


async def test_websockets_are_refused() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await edge()({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# -- settings


def test_hosts_and_origins_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_PLANE_TRUSTED_HOSTS", "Deploy.Example., *.below.example,*")
    monkeypatch.setenv("CONTROL_PLANE_CORS_ORIGINS", "https://App.example:443,http://localhost:3000")
    config = ControlPlaneConfig()
    assert config.trusted_hosts == ["deploy.example", "*.below.example", "*"]
    assert config.cors_origins == ["https://app.example", "http://localhost:3000"]
    monkeypatch.setenv("CONTROL_PLANE_CORS_ORIGINS", '["https://app.example"]')
    assert ControlPlaneConfig().cors_origins == ["https://app.example"]
    monkeypatch.setenv("SIMPLE_MESSAGE_QUEUE_TRUSTED_HOSTS", "queue")
    assert SimpleMessageQueueConfig().trusted_hosts == ["queue"]
    monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_TRUSTED_HOSTS", "service")
    assert WorkflowServiceConfig(host="127.0.0.1", port=0).trusted_hosts == ["service"]


@pytest.mark.parametrize("host", ["http://a", "a:80", "a/b", "*a", "a.*", ""])
def test_a_trusted_host_is_a_name(host: str) -> None:
    with pytest.raises(ValidationError, match="is not a host; write the name alone"):
        ControlPlaneConfig(trusted_hosts=[host])


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "null", "https://*.example"])
def test_an_allowed_origin_is_an_origin(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin; write scheme and host"):
        ControlPlaneConfig(cors_origins=[origin])
