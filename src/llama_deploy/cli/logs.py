"""Logging of the commands. Nothing else in the package configures any."""

from __future__ import annotations

import logging
import sys
from typing import Final

_PACKAGE: Final = "llama_deploy"
_DRIVERS: Final = ("aiormq", "aiokafka")
"""Packages that tell of each try to reach a broker; the queues tell once of its loss, and of its return."""


def configure_logging(*, verbose: bool, level: int = logging.INFO) -> None:
    """Log to stderr: this package from `level` on, others from warnings on.

    Args:
        verbose: Log everything of this package, what concerns single tasks included.
        level: The least level of this package's records, without `verbose`.
    """
    handler = _handler()
    handler.addFilter(_is_ours_or_a_warning)
    if not verbose:
        handler.addFilter(_is_not_about_one_task)
        for name in _DRIVERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(_PACKAGE).setLevel(logging.DEBUG if verbose else level)


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415 - half of the start-up of a short command
        from rich.logging import RichHandler  # noqa: PLC0415

        return RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%X")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
    """Whether to show a record; some libraries set levels of their own, below that of the root."""
    return record.levelno >= logging.WARNING or record.name.startswith(_PACKAGE)


def _is_not_about_one_task(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not hasattr(record, "task_id")
