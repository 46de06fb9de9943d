"""Reports that are too large for the queue: their sender hands them to the control plane itself."""

from __future__ import annotations

from collections.abc import Callable

from llama_deploy.control_plane.requests.attempts.attempt_requests import Attempts
from llama_deploy.control_plane.requests.attempts.report_gaps import ReportGaps
from llama_deploy.errors import EventsMissingError
from llama_deploy.messages import ActionTypes, QueueMessage


class ReportUploads:
    """Stores uploaded reports by the same rules as those from the queue.

    An upload does not show whether the queue still delivers, so it never declares an earlier report lost. It
    sends a probe through the queue instead: a report without events that follows the missing ones. The
    consumer of the queue decides when the probe arrives.

    Args:
        attempts: Stores them.
        probe_after: Seconds that earlier reports may be missing before a probe is sent.
        publish: Publishes a probe on the topic of the control plane, when the queue is available.
    """

    def __init__(
        self, attempts: Attempts, *, probe_after: float, publish: Callable[[QueueMessage], None]
    ) -> None:
        self._attempts = attempts
        self._publish = publish
        self._gaps = ReportGaps(lost_after=probe_after)

    async def take(self, message: QueueMessage) -> None:
        """Store a report. It is durable when this returns, unless its attempt belongs to another sender.

        Raises:
            EventsMissingError: The queue has not delivered earlier reports of the attempt yet. Upload this
                one again.
            UnavailableError: The store does not answer.
            OverloadedError: Too many writes wait.
        """
        (answer,) = await self._attempts.take([message])
        if isinstance(answer, EventsMissingError) and self._gaps.is_lost(message, answer):
            self._publish(_probe(message))
            self._gaps.close(message)  # the next probe follows after as much time again
        if answer is not None:
            raise answer
        self._gaps.close(message)


def _probe(message: QueueMessage) -> QueueMessage:
    """Return a report that has the place of `message` in the stream, and adds nothing to it."""
    place = {name: message.data[name] for name in ("task_id", "attempt", "token", "first")}
    return QueueMessage(
        # Not the id of the upload, which may come over the queue too and must not count as a duplicate.
        id_=f"{message.id_}-probe",
        publisher_id=message.publisher_id,
        type=message.type,
        action=ActionTypes.TASK_STREAM,
        data={**place, "events": []},
    )
