"""Logging of the commands. No other part of the package configures logging."""

from __future__ import annotations

import logging
import sys
from typing import Final

_PACKAGE: Final = "llama_deploy"
_ANNOUNCED: Final = frozenset({"control_plane_started", "register"})
"""What the commands print themselves when they are ready."""
_DRIVERS: Final = ("aiormq", "aiokafka")
"""Packages that log each attempt to reach a broker. The message queues log an outage and its end once."""


def configure_logging(*, verbose: bool, level: int = logging.INFO) -> None:
    """Log to stderr: records of this package from `level`, of other packages from WARNING.

    Args:
        verbose: Log all records of this package, including those about single tasks and those that repeat
            what the command prints.
        level: The minimum level without `verbose`.
    """
    handler = _handler()
    handler.addFilter(_is_ours_or_a_warning)
    if not verbose:
        handler.addFilter(_is_not_about_one_task)
        handler.addFilter(_is_not_announced)
        for name in _DRIVERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(_PACKAGE).setLevel(logging.DEBUG if verbose else level)


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415 - takes half of the start-up time of a short command
        from rich.logging import RichHandler  # noqa: PLC0415

        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, log_time_format="%X"
        )
        handler.setFormatter(logging.Formatter("%(message)s"))  # it shows time and level itself
        return handler
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
    """Whether to show a record. Some libraries set levels below that of the root logger."""
    return record.levelno >= logging.WARNING or record.name.startswith(_PACKAGE)


def _is_not_about_one_task(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not hasattr(record, "task_id")


def _is_not_announced(record: logging.LogRecord) -> bool:
    return getattr(record, "action", None) not in _ANNOUNCED
