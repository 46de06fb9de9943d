"""Limits on what grows with every request: inboxes and the state of sessions."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from llama_deploy.errors import OverloadedError, PayloadTooLargeError
from llama_deploy.types.keys import public_id


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Limits in bytes of JSON in UTF-8. The settings of the same names describe them."""

    max_inbox_bytes: int = sys.maxsize
    max_session_state_bytes: int = sys.maxsize

    def check_inbox(self, task_id: str, *, held: int, added: int) -> None:
        """Check that an event may be added to an inbox.

        Args:
            task_id: The task.
            held: How large the events are that its run has not consumed.
            added: How large the event is.

        Raises:
            PayloadTooLargeError: The event is larger than the limit.
            OverloadedError: There is no room until the run has consumed some of them.
        """
        limit = self.max_inbox_bytes
        if added > limit:
            raise PayloadTooLargeError(
                f"the event has {added} bytes, but the inbox of a task holds {limit}; send less, or raise"
                " max_inbox_bytes",
                limit_bytes=limit,
            )
        if held + added > limit:
            raise OverloadedError(
                f"the inbox of task {public_id(task_id)} holds {held} bytes of events that its run has not"
                f" consumed, and with {added} more it would exceed the limit of {limit}; send the event"
                " again when the run has consumed some, or raise max_inbox_bytes"
            )

    def check_state(self, session_id: str, *, before: int, after: int) -> None:
        """Check that the state of a session may have a new size. It may always become smaller.

        Raises:
            PayloadTooLargeError: It is too large.
        """
        limit = self.max_session_state_bytes
        if limit < after > before:
            raise PayloadTooLargeError(
                f"the state of session {public_id(session_id)} would have {after} bytes, but the limit is"
                f" {limit}; delete keys or keep large data elsewhere, or raise max_session_state_bytes",
                limit_bytes=limit,
            )
