"""What the commands log to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Protocol

import pytest

from llama_deploy.cli.logs import configure_logging


class Configure(Protocol):
    def __call__(self, *, verbose: bool) -> None: ...


logger = logging.getLogger("llama_deploy.test")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, package = logging.getLogger(), logging.getLogger("llama_deploy")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])


@pytest.fixture(params=["pipe", "terminal"])
def configure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Configures logging, to a pipe or to a terminal."""

    def configure_here(*, verbose: bool) -> None:
        # Not earlier: pytest replaces stderr between the fixtures and the test.
        monkeypatch.setattr(sys.stderr, "isatty", lambda: request.param == "terminal")
        configure_logging(verbose=verbose)

    return configure_here


def test_a_line_has_its_level_once(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(verbose=False)
    logger.warning("the queue is lost")
    shown = capsys.readouterr().err
    assert (shown.count("WARNING"), shown.count("the queue is lost")) == (1, 1)


@pytest.mark.parametrize("action", ["control_plane_started", "register"])
def test_what_the_announcement_says_is_not_logged_too(
    action: str, configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    for verbose in (False, True):
        configure(verbose=verbose)
        logger.info("ready", extra={"action": action})
        assert ("ready" in capsys.readouterr().err) is verbose


def test_changes_of_state_are_logged(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(verbose=False)
    logger.info("the queue is back", extra={"action": "queue_back"})
    assert "the queue is back" in capsys.readouterr().err
