"""The connection between a supervisor and a child."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from llama_deploy.supervisor.channel import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(each) for each in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def test_messages_arrive_in_order(ends: tuple[Channel, Channel]) -> None:
    for n in range(3):
        ends[0].send({"n": n})
    assert ends[1].receive() == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_message_that_arrives_in_parts(ends: tuple[Channel, Channel]) -> None:
    raw = ends[0].socket
    for part, expected in (
        (b'{"a": ', []),
        (b'"\xc3', []),
        (b'\xbc"}\n{"b":', [{"a": "ü"}]),
        (b" 1}\n{}\n", [{"b": 1}, {}]),
    ):
        raw.sendall(part)
        assert ends[1].receive() == expected


def test_a_large_message(ends: tuple[Channel, Channel]) -> None:
    message = {"held": [f"task {n}" for n in range(100_000)]}
    sender = threading.Thread(target=ends[0].send, args=(message,))
    sender.start()
    found = None
    while not found:
        found = ends[1].receive()
    sender.join()
    assert found == [message]


def test_a_closed_peer(ends: tuple[Channel, Channel]) -> None:
    ends[0].send({"last": 1})
    ends[0].close()
    ends[0].close()
    assert ends[1].receive() == [{"last": 1}]
    assert ends[1].receive() is None
    ends[1].send({"nobody": "reads"})


def test_a_peer_that_has_closed_without_reading(ends: tuple[Channel, Channel]) -> None:
    ends[1].send({"unread": 1})
    ends[0].close()
    assert ends[1].receive() is None


def test_a_full_socket_that_does_not_block(ends: tuple[Channel, Channel]) -> None:
    ends[0].socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends[0].send({"text": "x" * 100_000_000})


def test_nothing_has_arrived(ends: tuple[Channel, Channel]) -> None:
    ends[1].socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends[1].receive()


@pytest.mark.parametrize("garbage", [b"x\n", b"\n", b"{\n", b"\xff\xfe\n", b'{"a": 1}{\n'])
def test_garbage(ends: tuple[Channel, Channel], garbage: bytes) -> None:
    ends[0].socket.sendall(garbage)
    with pytest.raises(ValueError):
        ends[1].receive()


def test_long_messages_of_several_threads_do_not_mix(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    text = "x" * 1_000_000
    threads = [
        threading.Thread(target=sender.send, args=({"from": n, "text": text},), daemon=True) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    received: list[dict[str, object]] = []
    while len(received) < len(threads):
        messages = receiver.receive()
        assert messages is not None
        received += messages
    assert sorted(str(message["from"]) for message in received) == ["0", "1", "2", "3"]
