"""The small server that answers probes of a supervisor, and clients that speak HTTP badly or not at all."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from llama_deploy.health import PASSED, Checks, failed
from llama_deploy.supervisor.health_server import HealthServer

LOST: Checks = {"process 7": failed("it has been blocked for 3.0 s")}
Ask = Callable[[bytes], bytes]


@pytest.fixture
def port() -> Iterator[int]:
    server = HealthServer(live=lambda: {"supervisor": PASSED}, ready=lambda: LOST)
    yield server.start("127.0.0.1", 0)
    server.close()


@pytest.fixture
def ask(port: int) -> Ask:
    def exchange(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(request)
            return b"".join(iter(lambda: client.recv(65536), b""))

    return exchange


def get(path: str, host: str = "127.0.0.1:1", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def test_it_answers_whether_a_process_lives_and_is_ready(ask: Ask) -> None:
    head, _, body = ask(get("/health/live?verbose=1")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(body) == {"status": "ok", "checks": {"supervisor": {"ok": True, "reason": ""}}}
    for path in ("/health/ready", "/health"):
        head, _, body = ask(get(path)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert json.loads(body)["checks"]["process 7"]["reason"] == "it has been blocked for 3.0 s"


def test_head_has_the_headers_of_get(ask: Ask) -> None:
    assert ask(get("/health/ready", method="HEAD")) == ask(get("/health/ready")).partition(b"{")[0]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(get("/health/ready", method="POST"), 405, id="method"),
        pytest.param(get("/other"), 404, id="path"),
        pytest.param(b"hello\r\n\r\n", 400, id="not HTTP"),
        pytest.param(b"\x16\x03\x01\x00\xff\xff\r\n\r\n", 400, id="TLS"),
        pytest.param(get("/health/ready") + b"a body", 503, id="body"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"x" * 9000, 431, id="too large"),
    ],
)
def test_other_requests_are_refused(ask: Ask, request_: bytes, status: int) -> None:
    assert ask(request_).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "192.0.2.1:9", "[::1]:80", "[::1]"])
def test_reasons_are_told_under_an_address(ask: Ask, host: str) -> None:
    assert b"blocked" in ask(get("/health/ready", host))


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:80", "", "1.2.3.4.example"])
def test_a_page_with_another_name_learns_no_reasons(ask: Ask, host: str) -> None:
    answer = ask(get("/health/ready", host))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"blocked" not in answer


def test_clients_that_say_nothing_keep_nobody_waiting_and_are_dropped(ask: Ask, port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(100)]
    assert ask(get("/health/live")).startswith(b"HTTP/1.1 200 ")
    silent[0].sendall(b"GET ")
    for client in silent:
        with client:
            assert client.recv(1) == b""


def test_it_ends(port: int, ask: Ask) -> None:
    server = HealthServer(live=dict, ready=dict)
    other = server.start("127.0.0.1", 0)
    server.close()
    server.close()
    assert ask(get("/health/live"))  # the first one goes on
    again = HealthServer(live=dict, ready=dict)
    with pytest.raises(OSError, match="in use"):
        again.start("127.0.0.1", port)
    assert other != port


@pytest.fixture
def scraped() -> Iterator[tuple[int, threading.Event]]:
    """Run a server whose metrics take until an event is set; return its port and the event."""
    ready = threading.Event()

    def metrics() -> str:
        assert ready.wait(30)
        return "up 1\n"

    server = HealthServer(live=dict, ready=lambda: LOST, metrics=metrics)
    yield server.start("127.0.0.1", 0), ready
    ready.set()
    server.close()


def test_probes_do_not_wait_for_metrics(scraped: tuple[int, threading.Event]) -> None:
    port, ready = scraped
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(get("/metrics"))
        with socket.create_connection(("127.0.0.1", port), timeout=30) as other:
            other.sendall(get("/health/live"))
            assert other.recv(12) == b"HTTP/1.1 200"
        ready.set()
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert body == b"up 1\n"


def test_a_page_with_a_name_of_its_own_gets_no_metrics(scraped: tuple[int, threading.Event]) -> None:
    port, _ = scraped
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(get("/metrics", host="rebound.example"))
        assert client.recv(12) == b"HTTP/1.1 421"


def test_without_metrics_there_is_no_such_path(ask: Ask) -> None:
    assert ask(get("/metrics")).startswith(b"HTTP/1.1 404")
