"""Operations driven by hand: each request is looked at and answered here, and the clock is ours."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

from llama_deploy.client import deployment_operations as deployments
from llama_deploy.client import service_operations as services
from llama_deploy.client import session_operations as sessions
from llama_deploy.client import task_operations as tasks
from llama_deploy.client.operation import Deadline, Operation, Pause
from llama_deploy.errors import (
    InternalServerError,
    InvalidRequestError,
    LlamaDeployError,
    OverloadedError,
    ServiceNotFoundError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
    UnavailableError,
)
from llama_deploy.types import EventDefinition, ServiceDefinition, TaskDefinition, TaskStatus, TaskView
from llama_deploy.web.http_connection import HttpAnswer, HttpRequest

T = TypeVar("T")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Run:
    """An operation under way, of which `step` is what it wants next."""

    def __init__(self, operation: Operation[Any], clock: Clock | None = None) -> None:
        self._operation = operation
        self._clock = clock
        self.result: Any = None
        self.done = False
        self.step: HttpRequest | Pause = next(operation)

    @property
    def request(self) -> HttpRequest:
        assert isinstance(self.step, HttpRequest)
        return self.step

    def answer(
        self, value: Any = None, *, after: float = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        assert isinstance(self.step, HttpRequest)
        self._pass(after)
        self._go(HttpAnswer(value, headers or {}))

    def refuse(self, error: LlamaDeployError, *, after: float = 0) -> None:
        self._pass(after)
        self.step = self._operation.throw(error)

    def pause(self) -> float:
        assert isinstance(self.step, Pause)
        seconds = self.step.seconds
        self._pass(seconds)
        self._go(None)
        return seconds

    def _pass(self, seconds: float) -> None:
        if self._clock is not None:
            self._clock.now += seconds

    def _go(self, answer: HttpAnswer | None) -> None:
        try:
            self.step = self._operation.send(answer)
        except StopIteration as end:
            self.result, self.done = end.value, True


def view(status: str = "running", **changes: Any) -> dict[str, Any]:
    ended = TaskStatus(status).is_terminal
    result = {"task_id": "t1", "result": "7", "value": 7, "status": status} | changes.pop("result", {})
    fields = {
        "task_id": "t1",
        "session_id": "s1",
        "service_name": "adder",
        "status": status,
        "attempt": 1,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        "result": result if ended else None,
    }
    return fields | changes


def submission() -> Any:
    return tasks.describe("adder", {"a": 3, "b": 4}, task_id="t1")


def test_a_short_task_takes_one_request() -> None:
    clock = Clock()
    run = Run(tasks.run(submission(), Deadline(120, clock)), clock)
    assert (run.request.method, run.request.path) == ("POST", "/tasks")
    assert run.request.params == {"wait": tasks.LONGEST_WAIT}
    assert (run.request.timeout or 0) > tasks.LONGEST_WAIT
    assert run.request.json.model_dump(exclude_none=True) == {
        "service_name": "adder",
        "arguments": {"a": 3, "b": 4},
        "task_id": "t1",
    }
    run.answer(view("succeeded"))
    assert run.done
    assert run.result.value == 7
    assert run.result.result == "7"


def test_a_longer_task_is_waited_for_without_pauses() -> None:
    clock = Clock()
    run = Run(tasks.run(submission(), Deadline(50, clock)), clock)
    run.answer(view(), after=30)
    assert (run.request.method, run.request.path, run.request.params) == ("GET", "/tasks/t1", {"wait": 20.0})
    run.answer(view("succeeded"), after=5)
    assert run.result.value == 7


def test_a_late_result_raises_and_names_the_task() -> None:
    clock = Clock()
    run = Run(tasks.run(submission(), Deadline(40, clock)), clock)
    run.answer(view(), after=30)
    with pytest.raises(TaskTimeoutError, match=r"task t1 .* 40 s .*running") as caught:
        run.answer(view(), after=10)
    assert caught.value.facts() == {"task_id": "t1", "timeout": 40}


def test_a_wait_of_zero_asks_once() -> None:
    clock = Clock()
    run = Run(tasks.wait_for_end("t1", Deadline(0, clock)), clock)
    assert run.request.params == {"wait": 0}
    with pytest.raises(TaskTimeoutError):
        run.answer(view())


@pytest.mark.parametrize("path", ["/tasks/t1/events", "/sessions/s1/tasks/t1/send_event"])
def test_an_event_with_a_key_is_sent_until_it_is_taken(path: str) -> None:
    clock = Clock()
    event = EventDefinition(event_obj_str="{}", idempotency_key="mine")
    deadline = Deadline(10, clock)
    in_session = path.startswith("/sessions")
    run = Run(
        tasks.send_in_session("s1", "t1", event, deadline)
        if in_session
        else tasks.send("t1", event, deadline),
        clock,
    )
    for _ in range(2):
        assert (run.request.path, run.request.json) == (path, event)
        run.refuse(UnavailableError("no answer"), after=1)
        run.pause()
    run.answer()
    assert run.done
    run = Run(tasks.send("t1", event, Deadline(1, clock)), clock)
    with pytest.raises(UnavailableError):
        run.refuse(UnavailableError("no answer"), after=2)


def test_an_event_without_a_key_is_sent_once() -> None:
    run = Run(tasks.send("t1", EventDefinition(event_obj_str="{}"), Deadline(10)))
    with pytest.raises(UnavailableError):
        run.refuse(UnavailableError("no answer"))


def test_a_control_plane_that_sends_its_waiters_away_is_not_flooded() -> None:
    clock = Clock()
    run = Run(tasks.wait_for_end("t1", Deadline(60, clock)), clock)
    run.answer(view(), after=0.01)
    assert run.pause() == 0.1
    run.answer(view(), after=30)
    run.answer(view("succeeded"))
    assert run.done


def test_what_is_known_to_have_ended_is_not_asked_for() -> None:
    known = TaskView.model_validate(view("succeeded"))
    with pytest.raises(StopIteration) as end:
        next(tasks.wait_for_end("t1", Deadline(1), known))
    assert end.value.value is known


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        ("failed", TaskFailedError, "task t1 of service adder failed: builtins.ValueError: no such number"),
        ("timed_out", TaskFailedError, "exceeded its time limit"),
        ("cancelled", TaskCancelledError, "was cancelled"),
    ],
)
def test_other_ends_than_success_raise_with_their_facts(
    status: str, error: type[TaskFailedError], text: str
) -> None:
    run = Run(tasks.run(submission(), Deadline(5)))
    failure = {"type": "builtins.ValueError", "message": "no such number", "traceback": "line 1"}
    with pytest.raises(error, match=text) as caught:
        run.answer(view(status, result={"error": failure}))
    assert caught.value.facts() == {
        "task_id": "t1",
        "status": status,
        "error_type": "builtins.ValueError",
        "error_message": "no such number",
        "traceback": "line 1",
    }


def test_an_unanswered_submission_is_repeated_with_the_same_id_until_it_is_accepted() -> None:
    clock = Clock()
    run = Run(tasks.submit(tasks.describe("adder", {}), Deadline(120, clock)), clock)
    first = run.request.json.task_id
    pauses = []
    for _ in range(7):
        run.refuse(UnavailableError("gone"))
        pauses.append(run.pause())
        assert run.request.json.task_id == first
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    run.answer(view())
    assert run.result.status is TaskStatus.RUNNING


def test_an_unanswered_submission_raises_at_the_deadline() -> None:
    clock = Clock()
    run = Run(tasks.submit(submission(), Deadline(1, clock)), clock)
    run.refuse(UnavailableError("gone"), after=0.95)
    assert run.pause() == pytest.approx(0.05)
    with pytest.raises(UnavailableError, match="gone"):
        run.refuse(UnavailableError("gone"))


def test_an_overloaded_server_says_how_long_to_pause() -> None:
    clock = Clock()
    run = Run(tasks.submit(submission(), Deadline(10, clock)), clock)
    run.refuse(OverloadedError("full", retry_after=3))
    assert run.pause() == 3
    run.answer(view())
    assert run.done


def test_a_refused_submission_is_not_repeated() -> None:
    run = Run(tasks.submit(submission(), Deadline(10)))
    with pytest.raises(ServiceNotFoundError):
        run.refuse(ServiceNotFoundError("nobody", service_name="adder"))


def test_a_control_plane_that_comes_back_while_waiting_goes_unnoticed() -> None:
    clock = Clock()
    run = Run(tasks.run(submission(), Deadline(60, clock)), clock)
    run.answer(view())
    run.refuse(UnavailableError("gone"))
    run.pause()
    assert run.request.method == "GET"
    run.answer(view("succeeded"))
    assert run.result.value == 7


def test_a_control_plane_that_stays_away_while_waiting_is_a_timeout() -> None:
    clock = Clock()
    run = Run(tasks.wait_for_end("t1", Deadline(1, clock)), clock)
    with pytest.raises(TaskTimeoutError, match="gone"):
        run.refuse(UnavailableError("gone"), after=1)


def test_an_answer_of_another_form_is_told_apart() -> None:
    run = Run(tasks.read("t1"))
    with pytest.raises(InternalServerError, match="/tasks/t1"):
        run.answer({"hello": "world"})


def test_ids_are_quoted() -> None:
    assert Run(tasks.read("a/b c?d")).request.path == "/tasks/a%2Fb%20c%3Fd"


@pytest.mark.parametrize("changes", [{"task_id": ""}, {"max_attempts": 0}, {"session_id": ""}])
def test_a_submission_that_cannot_be_is_refused_here(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(changes))):
        tasks.describe("adder", {}, **changes)


def test_session_state_carries_its_version() -> None:
    run = Run(sessions.get_state("s1"))
    assert (run.request.method, run.request.path) == ("GET", "/sessions/s1/state")
    run.answer({"a": 1}, headers={"etag": '"4"'})
    assert (run.result.state, run.result.version) == ({"a": 1}, 4)

    run = Run(sessions.set_state("s1", {"a": 2}, version=4))
    assert (run.request.method, run.request.headers["If-Match"]) == ("PUT", '"4"')
    run.answer({"a": 2}, headers={"etag": '"5"'})
    assert run.result.version == 5

    run = Run(sessions.update_state("s1", {"b": 3}))
    assert (run.request.method, run.request.json) == ("POST", {"b": 3})
    run.answer({"a": 2, "b": 3}, headers={"etag": '"6"'})
    assert run.result.version == 6


def test_session_state_without_a_version_is_not_trusted() -> None:
    run = Run(sessions.get_state("s1"))
    with pytest.raises(InternalServerError, match="ETag"):
        run.answer({"a": 1})


def test_sessions_are_listed_page_by_page() -> None:
    run = Run(sessions.list_all())
    assert run.request.params == {"after": "", "limit": 1000}
    run.answer({f"s{n:04}": {"session_id": f"s{n:04}"} for n in range(1000)})
    assert run.request.params == {"after": "s0999", "limit": 1000}
    run.answer({"s1000": {"session_id": "s1000"}})
    assert [found.session_id for found in run.result] == [f"s{n:04}" for n in range(1001)]


def test_a_session_is_created_with_the_id_that_was_asked_for() -> None:
    run = Run(sessions.create(session_id="mine", policy="parallel"))
    assert run.request.json.model_dump(mode="json") == {"session_id": "mine", "policy": "parallel"}
    run.answer("mine")
    assert run.result == "mine"


@pytest.mark.parametrize(("session_id", "policy"), [(None, "sometimes"), ("", "enqueue")])
def test_a_session_that_cannot_be_is_refused_here(session_id: str | None, policy: str) -> None:
    with pytest.raises(InvalidRequestError):
        Run(sessions.create(session_id=session_id, policy=policy))


def test_services_are_known_by_their_id() -> None:
    run = Run(services.list_all())
    run.answer({"adder": {"service_name": "adder", "description": "Adds.", "host": "h", "port": 1}})
    assert run.result["adder"].id == "adder"
    assert run.result["adder"].description == "Adds."

    run = Run(services.register(ServiceDefinition(service_name="adder")))
    run.answer({"host": "127.0.0.1"})
    assert run.result.id == "adder"


def test_an_api_server_that_is_away_is_down() -> None:
    operation = deployments.status()
    next(operation)
    with pytest.raises(StopIteration) as end:
        operation.throw(UnavailableError("gone"))
    assert end.value.value.status == "Down"


def test_a_deployment_is_uploaded_as_a_file() -> None:
    run = Run(deployments.create(b"name: mine\n", reload=True, timeout=9))
    assert run.request.params == {"reload": "true"}
    assert run.request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert run.request.content is not None
    assert b'name="config_file"; filename="deployment.yaml"' in run.request.content
    assert b"name: mine\n" in run.request.content
    run.answer({"name": "mine"})
    assert run.result.name == "mine"


def test_deployment_tasks_name_their_session() -> None:
    task = TaskDefinition(input="{}", task_id="t1", session_id="s1")
    run = Run(deployments.task_results("mine", task))
    assert (run.request.path, run.request.params) == (
        "/deployments/mine/tasks/t1/results",
        {"session_id": "s1"},
    )
