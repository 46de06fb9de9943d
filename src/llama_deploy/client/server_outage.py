"""When a server does not answer: one line in the log at the start and one at the end, for all calls."""

from __future__ import annotations

import logging
import threading
import time

from llama_deploy.client.deadline import Clock
from llama_deploy.errors import LlamaDeployError, OverloadedError

logger = logging.getLogger(__name__)


class ServerOutage:
    """Logs the outages of a server. All calls to the server share it, from any thread.

    An outage begins with a call that fails, and ends with the first one that is answered. Calls that were
    made before that answer and fail after it belong to the outage that is over.

    Args:
        server: Names the server, such as `the control plane http://127.0.0.1:8000`.
        clock: Tells which of two calls was made first.
    """

    def __init__(self, server: str, clock: Clock = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._lock = threading.Lock()
        self._answered_at = clock()
        self.lasts = False
        """Whether the last that is known of the server is that it does not answer."""

    def now(self) -> float:
        """Return the time at which a call is made, for `failed`."""
        return self._clock()

    def failed(self, error: LlamaDeployError, *, made_at: float) -> None:
        """A call was not answered and will be made again."""
        with self._lock:
            begins = not self.lasts and made_at >= self._answered_at
            self.lasts = self.lasts or begins
        if begins:
            logger.warning(
                "%s %s; retrying: %s",
                self._server,
                "is overloaded" if isinstance(error, OverloadedError) else "does not answer",
                error,
                extra={"action": "server_lost"},
            )

    def answered(self) -> None:
        """A call was answered, be it with an error."""
        with self._lock:
            ends, self.lasts = self.lasts, False
            self._answered_at = self._clock()
        if ends:
            logger.warning("%s answers again", self._server, extra={"action": "server_back"})
