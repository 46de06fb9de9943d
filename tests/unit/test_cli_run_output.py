"""What `llamactl run` prints when a new attempt takes over."""

from __future__ import annotations

import json

import pytest

from llama_deploy.cli.running.run_command import JsonOutput, Output, QuietOutput, ReadableOutput
from llama_deploy.client import Service
from llama_deploy.types import NewAttempt

NEW = NewAttempt(attempt=2, position=9, repeats_from=4, reason="lost")


@pytest.fixture
def service() -> Service:
    return Service.model_construct(service_name="writer")


def test_people_read_on_stderr_what_may_come_again(
    capsys: pytest.CaptureFixture[str], service: Service
) -> None:
    ReadableOutput(service).new_attempt(NEW)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "attempt 2 (the instance before was lost): the last 5 events, from event 4 on, may come again\n"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"repeats_from": 9}, "attempt 2 (the instance before was lost): no event comes again\n"),
        ({"repeats_from": 8}, "attempt 2 (the instance before was lost): the last event, from event 8 on,"),
        ({"reason": "unheard_of"}, "attempt 2 (unheard_of): "),
    ],
)
def test_the_line_fits_the_facts(
    capsys: pytest.CaptureFixture[str], service: Service, changes: dict[str, object], text: str
) -> None:
    ReadableOutput(service).new_attempt(NEW.model_copy(update=changes))
    assert capsys.readouterr().err.startswith(text)


def test_programs_read_an_object(capsys: pytest.CaptureFixture[str], service: Service) -> None:
    JsonOutput(service).new_attempt(NEW)
    assert json.loads(capsys.readouterr().out) == {"new_attempt": NEW.model_dump()}


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str], service: Service) -> None:
    output: Output = QuietOutput(JsonOutput(service))
    output.new_attempt(NEW)
    assert capsys.readouterr() == ("", "")
