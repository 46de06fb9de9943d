"""The head of an answer leaves with the beginning of its body."""

from __future__ import annotations

import asyncio

import pytest

from llama_deploy.web.answer_writer import AnswerWriter

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Packets(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def packets() -> Packets:
    return Packets()


@pytest.fixture
async def writer(packets: Packets) -> AnswerWriter:
    return AnswerWriter(packets, asyncio.get_running_loop())


async def test_head_and_body_are_one_packet(writer: AnswerWriter, packets: Packets) -> None:
    writer.write(HEAD)
    writer.write(b"body")
    await asyncio.sleep(0)
    assert packets.sent == [HEAD + b"body"]


async def test_a_head_waits_for_nothing_but_the_event_loop(writer: AnswerWriter, packets: Packets) -> None:
    writer.write(HEAD)
    await asyncio.sleep(0)
    assert packets.sent == [HEAD]
    writer.write(b"event")
    assert packets.sent == [HEAD, b"event"]


async def test_an_empty_body_sends_the_head(writer: AnswerWriter, packets: Packets) -> None:
    writer.write(HEAD)
    writer.write(b"")
    assert packets.sent == [HEAD]


async def test_a_large_body_is_not_copied(writer: AnswerWriter, packets: Packets) -> None:
    body = bytes(100_000)
    writer.write(HEAD)
    writer.write(body)
    assert packets.sent == [HEAD, body]


async def test_a_head_is_sent_before_the_connection_is_closed(writer: AnswerWriter, packets: Packets) -> None:
    writer.write(HEAD)
    writer.close()
    await asyncio.sleep(0)
    assert packets.sent == [HEAD]
    assert writer.is_closing()


async def test_each_answer_of_a_connection_is_a_packet(writer: AnswerWriter, packets: Packets) -> None:
    for number in (b"1", b"2"):
        writer.write(HEAD)
        writer.write(number)
    await asyncio.sleep(0)
    assert packets.sent == [HEAD + b"1", HEAD + b"2"]
