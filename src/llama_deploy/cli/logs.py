"""Logging of the commands. No other part of the package configures logging."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from llama_deploy.printable import printable, printable_traceback
from llama_deploy.running_task import running_task
from llama_deploy.tracing import log_ids

_PACKAGE: Final = "llama_deploy"
_ANNOUNCED: Final = frozenset({"control_plane_started", "launch", "register"})
"""What the commands print themselves when they are ready."""
_LIBRARIES: Final = (
    "aiobotocore",
    "aiohttp",
    "alembic",
    "asyncio",
    "botocore",
    "httpcore",
    "httpx",
    "uvicorn",
)
"""Packages that log each request or each start."""
_DRIVERS: Final = ("aiormq", "aiokafka")
"""Packages that log each attempt to reach a broker. The message queues log an outage and its end once."""
_IDS: Final = ("task_id", "session_id", "service_name", "attempt")


class LogFormat(StrEnum):
    """How records are written to stderr."""

    TEXT = "text"
    """For people."""
    JSON = "json"
    """One object per line."""


class CommandLogging:
    """What a command logs to stderr: from INFO, and with `verbose` everything.

    An application that configures logging itself, for example with `logging.basicConfig`, keeps its own
    handlers and levels, unless the command line names a format.

    Args:
        verbose: Show all records of all packages. Without it, those of this package about single tasks are
            left out, those that repeat what the command prints, and the details of libraries.
        log_format: How records are written. None: as text.
        level: The minimum level of this package's records without `verbose`.
    """

    def __init__(
        self, *, verbose: bool, log_format: LogFormat | None = None, level: int = logging.INFO
    ) -> None:
        self._root = logging.getLogger()
        self._is_forced = log_format is not None
        self._handler = _handler(log_format or LogFormat.TEXT)
        if not verbose:
            self._handler.addFilter(_is_wanted)
            for names, least in ((_LIBRARIES, logging.WARNING), (_DRIVERS, logging.CRITICAL)):
                for name in names:
                    logging.getLogger(name).setLevel(least)
        self._root.handlers[:] = [self._handler]
        self._root.setLevel(logging.DEBUG if verbose else logging.INFO)
        logging.getLogger(_PACKAGE).setLevel(logging.DEBUG if verbose else level)

    @contextmanager
    def left_to_the_application(self) -> Iterator[None]:
        """Let what is imported here configure logging as if it ran on its own."""
        package, level = logging.getLogger(_PACKAGE), self._root.level
        self._root.removeHandler(self._handler)
        self._root.setLevel(logging.WARNING)  # as Python starts
        package.addHandler(self._handler)
        try:
            yield
        finally:
            package.removeHandler(self._handler)
            for name, logger in logging.root.manager.loggerDict.items():
                if name.partition(".")[0] == _PACKAGE and isinstance(logger, logging.Logger):
                    logger.disabled = False  # `logging.config` disables what it does not name
            if not self._root.handlers or self._is_forced:
                self._take_over(level)

    def _take_over(self, level: int) -> None:
        """Write what the application would have written to the terminal."""
        others = [each for each in self._root.handlers if not _writes_to_terminal(each)]
        self._root.handlers[:] = [*others, self._handler]
        if self._root.level == logging.WARNING:
            self._root.setLevel(level)


def _writes_to_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    return stream is not None and stream in {sys.stdout, sys.stderr}


def _handler(log_format: LogFormat) -> logging.Handler:
    if log_format is LogFormat.TEXT and sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415 - takes half of the start-up time of a short command
        from rich.logging import RichHandler  # noqa: PLC0415

        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, log_time_format="%X"
        )
        handler.setFormatter(_TextFormatter("%(message)s"))  # it shows time and level itself
        return handler
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter()
        if log_format is LogFormat.JSON
        else _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    return handler


class _TextFormatter(logging.Formatter):
    """One line for a record, then its traceback: no text of a user looks like another record.

    It adds the task to what was logged for one, unless the message names it.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the base class
        text = printable(super().formatMessage(record))
        task_id = _ids(record).get("task_id")
        return text if task_id is None or str(task_id) in text else f"{text} [task {task_id}]"

    def formatException(self, ei: Any) -> str:  # noqa: N802 - of the base class
        return printable_traceback(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - of the base class
        return printable_traceback(super().formatStack(stack_info))


class _JsonFormatter(logging.Formatter):
    """Writes one JSON object: time, level, logger, message, ids, and the traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if hasattr(record, "action"):
            fields["action"] = _plain(record.action)
        fields |= {name: _plain(value) for name, value in (log_ids() | _ids(record)).items()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return json.dumps(fields)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as exc:  # noqa: BLE001 - of the application's objects
        return f"{_text(record.msg)} (cannot be formatted with its arguments: {type(exc).__name__})"


def _plain(value: object) -> str | int | None:
    return value if value is None or isinstance(value, str | int) else _text(value)


def _text(value: object) -> str:
    from llama_deploy.codec import text_of  # noqa: PLC0415 - short commands start faster without it

    return text_of(value)


def _ids(record: logging.LogRecord) -> dict[str, object]:
    """Return the ids of a record: its own ones, and those of the task for which it was logged."""
    task = running_task.get()
    own = {name: getattr(record, name) for name in _IDS if hasattr(record, name)}
    if task is None or own.get("task_id", task.task_id) != task.task_id:
        return own
    return {name: getattr(task, name) for name in _IDS} | own


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether to show a record without `verbose`. Some libraries set a level below that of the root."""
    if record.levelno >= logging.WARNING:
        return True
    if str(record.name).partition(".")[0] != _PACKAGE:  # a record that was made by hand may have none
        return record.levelno >= logging.INFO
    return not hasattr(record, "task_id") and getattr(record, "action", None) not in _ANNOUNCED
