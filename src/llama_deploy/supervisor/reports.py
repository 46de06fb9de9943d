"""What a supervisor sends to the control plane: repeated heartbeats, and the deaths of processes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llama_deploy.errors import LlamaDeployError

if TYPE_CHECKING:
    from llama_deploy.web.sync_http_connection import SyncHttpConnection

logger = logging.getLogger(__name__)

_DEATH_SECONDS: Final = 60.0
"""How long the report of a death is tried. Then the lease has ended in any case."""
_RETRY_SECONDS: Final = 0.2
_MAX_REASON: Final = 500
"""The most characters in the reason of a death."""
_BEAT_SECONDS: Final = 5.0
"""How long a heartbeat may take."""


@dataclass(slots=True, eq=False)
class Reports:
    """Sends reports in threads of their own, so that a control plane that hangs delays nothing."""

    _connection: SyncHttpConnection | None = field(default=None, init=False)
    _beating: set[str] = field(default_factory=set, init=False)
    """The instances whose repeated heartbeat is under way."""
    _deaths: list[threading.Thread] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def repeat(self, connection: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> None:
        """Send a heartbeat, unless the last one of the instance is still under way.

        Args:
            connection: The fields of `ConnectionSettings`.
            heartbeat: The heartbeat as JSON.
        """
        instance_id = heartbeat["instance_id"]
        with self._lock:
            if instance_id in self._beating:
                return
            self._beating.add(instance_id)
        threading.Thread(target=self._beat, args=(connection, heartbeat), daemon=True).start()

    def report_death(self, connection: Mapping[str, Any], death: Mapping[str, Any]) -> None:
        """Report that a process has ended, until the control plane knows it.

        Args:
            connection: The fields of `ConnectionSettings`.
            death: A `ProcessDeath` as JSON.
        """
        thread = threading.Thread(target=self._send_death, args=(connection, death), daemon=True)
        self._deaths = [each for each in self._deaths if each.is_alive()] + [thread]
        thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until all deaths are reported, but not longer than `seconds`."""
        until = time.monotonic() + seconds
        for thread in self._deaths:
            thread.join(max(0.0, until - time.monotonic()))

    def _beat(self, connection: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> None:
        try:
            self._post(connection, "/instances/heartbeat", heartbeat)
        except LlamaDeployError as exc:
            logger.debug("repeating a heartbeat failed: %s", exc, extra={"action": "repeat_heartbeat"})
        finally:
            with self._lock:
                self._beating.discard(heartbeat["instance_id"])

    def _send_death(self, connection: Mapping[str, Any], death: Mapping[str, Any]) -> None:
        until = time.monotonic() + _DEATH_SECONDS
        while True:
            try:
                self._post(connection, "/instances/death", death)
            except LlamaDeployError as exc:
                if not exc.retriable or time.monotonic() >= until:
                    logger.warning(
                        "the control plane was not told that a process has ended; its tasks move on when"
                        " their lease ends: %s",
                        exc,
                        extra={"action": "report_death"},
                    )
                    return
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def _post(self, connection: Mapping[str, Any], path: str, body: Mapping[str, Any]) -> None:
        from llama_deploy.web.http_exchange import HttpRequest  # noqa: PLC0415 - a supervisor needs it seldom
        from llama_deploy.web.problems import from_problem  # noqa: PLC0415 - as above

        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **connection["protocol"]}
        request = HttpRequest("POST", path, content=content, headers=headers, timeout=_BEAT_SECONDS)
        status, answer = self._connect(connection).send(request)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise from_problem(status, answer, url=path)

    def _connect(self, connection: Mapping[str, Any]) -> SyncHttpConnection:
        from llama_deploy.web.connection_settings import ConnectionSettings  # noqa: PLC0415 - as above
        from llama_deploy.web.sync_http_connection import SyncHttpConnection  # noqa: PLC0415 - as above

        with self._lock:
            if self._connection is None:
                self._connection = SyncHttpConnection(ConnectionSettings(**connection["settings"]))
            return self._connection


def death_of(instances: Sequence[str], *, reason: str, culprits: Sequence[str]) -> dict[str, Any]:
    """Return a `ProcessDeath` as JSON."""
    line = " ".join(reason.splitlines())[:_MAX_REASON]
    return {"instances": list(instances), "reason": line, "culprits": list(culprits)}
