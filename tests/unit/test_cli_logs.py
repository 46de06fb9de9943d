"""What the commands log to stderr."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from collections.abc import Iterator
from typing import Protocol

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from llama_deploy.cli.logs import CommandLogging, LogFormat
from llama_deploy.running_task import TaskInfo, running_task


class Configure(Protocol):
    def __call__(self, *, verbose: bool = False, log_format: LogFormat | None = None) -> CommandLogging: ...


logger = logging.getLogger("llama_deploy.test")
application = logging.getLogger("app.flow")
TASK = TaskInfo("abcd", "efgh", "desk", 2)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, package = logging.getLogger(), logging.getLogger("llama_deploy")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])
    application.disabled = False


@pytest.fixture(params=["pipe", "terminal"])
def configure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Configures logging, to a pipe or to a terminal."""

    def configure_here(*, verbose: bool = False, log_format: LogFormat | None = None) -> CommandLogging:
        # Not earlier: pytest replaces stderr between the fixtures and the test.
        monkeypatch.setattr(sys.stderr, "isatty", lambda: request.param == "terminal")
        return CommandLogging(verbose=verbose, log_format=log_format)

    return configure_here


def test_a_line_has_its_level_once(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(verbose=False)
    logger.warning("the queue is lost")
    shown = capsys.readouterr().err
    assert (shown.count("WARNING"), shown.count("the queue is lost")) == (1, 1)


@pytest.mark.parametrize("action", ["control_plane_started", "launch", "register"])
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


def test_the_records_of_the_application_are_shown(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    for verbose in (False, True):
        configure(verbose=verbose)
        application.debug("a detail")
        application.info("a change")
        err = capsys.readouterr().err
        assert ("a detail" in err, "a change" in err) == (verbose, True)


def test_an_application_that_configures_logging_is_obeyed(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = configure()
    with logs.left_to_the_application():
        logging.basicConfig(level=logging.DEBUG, format="mine %(levelname)s %(message)s", stream=sys.stdout)
    application.debug("one")
    logger.info("two")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["mine DEBUG one", "mine INFO two"]
    assert not captured.err


def test_an_application_that_sets_a_level_only_gets_it(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    with configure().left_to_the_application():
        logging.getLogger().setLevel(logging.ERROR)
    application.warning("hidden")
    application.error("shown")
    err = capsys.readouterr().err
    assert ("hidden" in err, "shown" in err) == (False, True)


def test_a_configuration_that_disables_loggers_does_not_silence_the_package(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    with configure().left_to_the_application():
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    logger.warning("the queue is lost")
    assert "the queue is lost" in capsys.readouterr().err


def test_a_format_on_the_command_line_replaces_what_the_application_prints(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    with configure(log_format=LogFormat.JSON).left_to_the_application():
        logging.basicConfig(level=logging.INFO)
    application.info("it begins")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "it begins"


def test_a_json_line_has_ids_and_the_traceback(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_format=LogFormat.JSON)
    token = running_task.set(TASK)
    application.error("failed with %r", b"\x00", exc_info=ValueError("no\nway"))
    running_task.reset(token)
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert {name: fields[name] for name in ("level", "logger", "message")} == {
        "level": "ERROR",
        "logger": "app.flow",
        "message": "failed with b'\\x00'",
    }
    assert [fields[name] for name in ("task_id", "session_id", "service_name", "attempt")] == [
        "abcd",
        "efgh",
        "desk",
        2,
    ]
    assert fields["exception"].endswith("ValueError: no\nway")
    assert fields["time"].endswith("+00:00")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def log_oddly() -> None:
    """Log what may be wrong with a record."""
    application.info("%d requests", "some")
    application.info("%s and %s", "one")
    application.info("of %s", Unprintable())
    application.info(Unprintable())
    circle: dict[object, object] = {}
    circle[1, 2] = circle
    for action in (circle, Unprintable(), float("nan"), {"a": object()}):
        application.info("action", extra={"action": action})
    application.info("stack", stack_info=True)
    application.handle(logging.makeLogRecord({"msg": "made", "levelno": logging.INFO}))


def test_any_record_is_one_json_line(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format=LogFormat.JSON)
    log_oddly()
    lines = [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        for line in capsys.readouterr().err.splitlines()
    ]
    assert [line["message"].partition(" (cannot")[0] for line in lines] == [
        "%d requests",
        "%s and %s",
        "of %s",
        "(its text failed with RuntimeError)",
        *["action"] * 4,
        "stack",
        "made",
    ]
    assert "TypeError" in lines[0]["message"]
    assert "log_oddly" in lines[8]["stack"]


def test_a_line_of_text_names_the_task_once(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    token = running_task.set(TASK)
    application.info("it begins")
    logger.warning("task abcd failed", extra={"task_id": "abcd"})
    running_task.reset(token)
    application.info("idle")
    assert capsys.readouterr().err.count("abcd") == 2


def test_json_has_the_ids_of_the_span(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format=LogFormat.JSON)
    span = SpanContext(
        0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=True, trace_flags=TraceFlags(1)
    )
    with trace.use_span(NonRecordingSpan(span)):
        application.warning("inside")
    application.warning("outside")
    inside, outside = map(json.loads, capsys.readouterr().err.splitlines())
    assert inside["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert inside["span_id"] == "b7ad6b7169203331"
    assert "trace_id" not in outside
