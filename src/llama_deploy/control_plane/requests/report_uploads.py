"""Reports that are too large for the queue: their sender hands them to the control plane itself."""

from __future__ import annotations

from llama_deploy.control_plane.requests.attempt_requests import Attempts
from llama_deploy.control_plane.requests.report_gaps import ReportGaps
from llama_deploy.errors import EventsMissingError
from llama_deploy.messages import QueueMessage


class ReportUploads:
    """Stores uploaded reports by the same rules as those from the queue.

    Args:
        attempts: Stores them.
        lost_after: Seconds after which earlier reports, which the queue carries, count as lost.
    """

    def __init__(self, attempts: Attempts, *, lost_after: float) -> None:
        self._attempts = attempts
        self._gaps = ReportGaps(lost_after=lost_after)

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
            await self._attempts.take_back(message)
        if answer is not None:
            raise answer
        self._gaps.close(message)
