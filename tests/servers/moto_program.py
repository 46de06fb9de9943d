"""The SQS of moto as a program: `python -m tests.servers.moto_program PORT`.

moto answers each request in a thread of its own and guards its queues by no lock: a message that is sent
while another one is deleted can be lost, and two members can be handed the same one. Here its calls take
turns, and who waits for a message is woken by the call that may have brought it. Connections are kept, as the
service keeps them.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from moto.server import main
from moto.sqs.models import SQSBackend
from werkzeug.serving import WSGIRequestHandler

_LOOK_SECONDS: Final = 0.1
"""How often is looked for messages that are visible again."""
_CALLS: Final = (
    "change_message_visibility_batch",
    "create_queue",
    "delete_message_batch",
    "delete_queue",
    "send_message",
    "send_message_batch",
)


def take_turns() -> None:
    """Make the calls of all queues exclude each other."""
    changed = threading.Condition()
    for name in _CALLS:
        setattr(SQSBackend, name, _guarded(getattr(SQSBackend, name), changed))
    receive = SQSBackend.receive_message

    def receive_message(
        self: SQSBackend, queue_name: str, count: int, wait: int, *arguments: Any
    ) -> list[Any]:
        until = time.monotonic() + wait
        with changed:
            while True:
                received = receive(self, queue_name, count, 0, *arguments)
                left = until - time.monotonic()
                if received or left <= 0:
                    return received
                changed.wait(min(left, _LOOK_SECONDS))

    setattr(SQSBackend, "receive_message", receive_message)  # noqa: B010 - its signature is shorter


def _guarded(call: Callable[..., Any], changed: threading.Condition) -> Callable[..., Any]:
    @functools.wraps(call)
    def guarded(*arguments: Any, **named: Any) -> Any:
        with changed:
            result = call(*arguments, **named)
            changed.notify_all()
            return result

    return guarded


if __name__ == "__main__":
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    take_turns()
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
