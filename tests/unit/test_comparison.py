"""How the benchmarks judge a fault round, and how they tell what they could not measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faults import stream_fault
from benchmarks.measurements import QUICK
from benchmarks.rows import SHOWN, Comparison, Row
from benchmarks.servers import ServerMissingError, opened
from rich.console import Console

from llama_deploy.types import TaskEvent


def stream(*data: dict[str, Any]) -> list[TaskEvent]:
    last = len(data) - 1
    return [
        TaskEvent(index=index, type="Event", data=each, terminal=index == last)
        for index, each in enumerate(data)
    ]


START = {"process_id": 1}
END = {"result": 0}


def test_a_whole_stream_has_no_fault() -> None:
    assert stream_fault(stream(START, {"number": 0}, {"number": 1}, END), count=2) is None


def test_a_run_that_was_taken_over_streams_again() -> None:
    assert stream_fault(stream(START, {"number": 0}, START, {"number": 0}, END), count=1) is None


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        (stream(START, {"number": 1}, END), "its last run has not streamed all it should"),
        (stream(START, {"number": 0}, START, END), "its last run has not streamed all it should"),
        (stream({"number": 0}, END), "its last run has not streamed all it should"),
        (stream(START, {"number": 0}, END)[1:], "events are missing, doubled or out of order"),
        (stream(START, {"number": 0}, END)[:-1], "it has not ended once, and last"),
        (
            [*stream(START, {"number": 0}, END), TaskEvent(index=3, type="Event", data=END, terminal=True)],
            "it has not ended once, and last",
        ),
        ([], "it has not ended once, and last"),
    ],
)
def test_what_is_wrong_with_a_stream_is_told(events: list[TaskEvent], fault: str) -> None:
    assert stream_fault(events, count=1) == fault


@contextmanager
def missing_when_started(_folder: Path) -> Iterator[None]:
    pytest.skip("no such server")
    yield


def missing_when_made(_folder: Path) -> AbstractContextManager[None]:
    pytest.skip("no such server")


@pytest.mark.parametrize("make", [missing_when_made, missing_when_started])
async def test_a_server_that_is_not_there_is_told_from_one_that_fails(
    make: Callable[[Path], AbstractContextManager[None]], tmp_path: Path
) -> None:
    async with AsyncExitStack() as resources:
        # Of all that there is: else what `opened` lets through would skip this test.
        with pytest.raises(BaseException, match="no such server") as caught:
            await opened(resources, make, tmp_path)
    assert caught.type is ServerMissingError


def measured(queue: str) -> Row:
    row = Row(queue, "sqlite", scale=QUICK)
    computed = {"events_per_second", "cpu_servers_ms"}
    row.figures.add(**dict.fromkeys(set(SHOWN.values()) - computed, 1.0), stream_seconds=0.5)
    row.figures.add(errands=4, errands_right=3)
    return row


def test_a_missing_server_has_a_row_with_the_reason_and_is_no_failure() -> None:
    row = Row("nats", "sqlite", scale=QUICK, missing="no nats-server; it is in a package")
    comparison = Comparison(rows=[measured("simple"), row], context={})
    assert comparison.passed
    assert "no nats-server; it is in a package" in printed(comparison)


def test_the_table_shows_the_faults_and_a_failure_fails_the_run() -> None:
    row = measured("nats")
    comparison = Comparison(rows=[row], context={})
    assert comparison.passed
    assert row.values["events_per_second"] == QUICK.events / 0.5
    row.tally.fail("task 3 has not ended")
    assert not comparison.passed
    assert "3/4" in printed(comparison)
    assert "task 3 has not ended" in printed(comparison)
    assert comparison.tally.failures == ["nats over sqlite: task 3 has not ended"]


def test_a_row_without_a_figure_has_not_passed() -> None:
    row = measured("nats")
    del row.figures.values["tasks_per_second"]
    assert not row.passed


def printed(comparison: Comparison) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(comparison.as_table())
    return captured.get()
