"""The client's calls, driven by hand: each request is checked and answered here, and the clock is ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest

from llama_deploy.client.aio import task_calls
from llama_deploy.client.aio.apiserver import ApiServer, DeploymentTasks
from llama_deploy.client.aio.core import ServiceCollection, Session, SessionCollection
from llama_deploy.client.aio.server_api import ServerApi
from llama_deploy.client.aio.task import TaskHandle
from llama_deploy.client.deadline import Deadline
from llama_deploy.client.payload_encoding import build_submission
from llama_deploy.client.server_outage import ServerOutage
from llama_deploy.client.settings import ClientSettings
from llama_deploy.errors import (
    InternalServerError,
    InvalidRequestError,
    LlamaDeployError,
    OverloadedError,
    ServiceNotFoundError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
    UnavailableError,
)
from llama_deploy.types import EventDefinition, ServiceDefinition, TaskDefinition, TaskStatus, TaskView
from llama_deploy.web.http_exchange import HttpAnswer, HttpRequest


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Pause:
    seconds: float


class Wish:
    """Hands a request or a pause to the test and waits for its answer."""

    def __init__(self, step: HttpRequest | Pause) -> None:
        self._step = step

    def __await__(self) -> Generator[HttpRequest | Pause, HttpAnswer | None, HttpAnswer | None]:
        return (yield self._step)


class Connection:
    """The side of an HTTP connection that the test plays."""

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        answer = await Wish(request)
        assert answer is not None
        return answer

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[AsyncGenerator[bytes]]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def pause(seconds: float) -> None:
    await Wish(Pause(seconds))


def api() -> ServerApi:
    return ServerApi(Connection(), ClientSettings(), ServerOutage("the control plane"), sleep=pause)


API = api()


class Run:
    """A call under way, of which `step` is what it wants next."""

    def __init__(self, call: Coroutine[Any, Any, Any], clock: Clock | None = None) -> None:
        self._call = call
        self._clock = clock
        self.result: Any = None
        self.done = False
        self.step: HttpRequest | Pause = self._call.send(None)

    @property
    def request(self) -> HttpRequest:
        assert isinstance(self.step, HttpRequest)
        return self.step

    def answer(
        self, value: Any = None, *, after: float = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        assert isinstance(self.step, HttpRequest)
        self._pass(after)
        self._go(lambda: self._call.send(HttpAnswer(value, headers or {})))

    def fail(self, error: LlamaDeployError, *, after: float = 0) -> None:
        self._pass(after)
        self._go(lambda: self._call.throw(error))

    def pause(self) -> float:
        assert isinstance(self.step, Pause)
        seconds = self.step.seconds
        self._pass(seconds)
        self._go(lambda: self._call.send(None))
        return seconds

    def _pass(self, seconds: float) -> None:
        if self._clock is not None:
            self._clock.now += seconds

    def _go(self, resume: Callable[[], HttpRequest | Pause]) -> None:
        try:
            self.step = resume()
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
    return build_submission("adder", {"a": 3, "b": 4}, task_id="t1")


def test_a_short_task_takes_one_request() -> None:
    clock = Clock()
    run = Run(task_calls.run(API, submission(), Deadline(120, clock)), clock)
    assert (run.request.method, run.request.path) == ("POST", "/tasks")
    assert run.request.params == {"wait": task_calls.MAX_WAIT}
    assert (run.request.timeout or 0) > task_calls.MAX_WAIT
    assert run.request.json.model_dump(exclude_none=True) == {
        "service_name": "adder",
        "arguments": {"a": 3, "b": 4},
        "task_id": "t1",
        "tags": [],
    }
    run.answer(view("succeeded"))
    assert run.done
    assert run.result.value == 7
    assert run.result.result == "7"


def test_a_longer_task_is_awaited_without_pauses() -> None:
    clock = Clock()
    run = Run(task_calls.run(API, submission(), Deadline(50, clock)), clock)
    run.answer(view(), after=30)
    assert (run.request.method, run.request.path, run.request.params) == ("GET", "/tasks/t1", {"wait": 20.0})
    run.answer(view("succeeded"), after=5)
    assert run.result.value == 7


def test_a_late_result_raises_with_the_task_id() -> None:
    clock = Clock()
    run = Run(task_calls.run(API, submission(), Deadline(40, clock)), clock)
    run.answer(view(), after=30)
    with pytest.raises(TaskTimeoutError, match=r"task t1 .* 40 s .*running") as caught:
        run.answer(view(), after=10)
    assert caught.value.facts() == {"task_id": "t1", "timeout": 40}


def test_a_wait_of_zero_asks_once() -> None:
    clock = Clock()
    run = Run(task_calls.wait_for_end(API, "t1", Deadline(0, clock)), clock)
    assert run.request.params == {"wait": 0}
    with pytest.raises(TaskTimeoutError):
        run.answer(view())


LOST = "the control plane does not answer; retrying: gone"
BACK = "the control plane answers again"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


READS: list[Callable[[ServerApi], Coroutine[Any, Any, Any]]] = [
    lambda api: TaskHandle(api, task_id="t1").info(),
    lambda api: TaskHandle(api, task_id="t1").status(),
    lambda api: TaskHandle(api, task_id="t1").cancel(),
    lambda api: ServiceCollection(api).list(),
    lambda api: SessionCollection(api).list(),
    lambda api: SessionCollection(api).get("s1"),
    lambda api: SessionCollection(api).create(),
    lambda api: SessionCollection(api).delete("s1"),
    lambda api: Session(api, "s1").get_tasks(),
    lambda api: Session(api, "s1").get_task_result("t1"),
    lambda api: Session(api, "s1").get_state(),
]


@pytest.mark.parametrize("call", READS)
def test_a_call_that_may_be_repeated_outlasts_an_outage(
    call: Callable[[ServerApi], Coroutine[Any, Any, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(call(api()))
    first = run.request
    for _ in range(3):
        run.fail(UnavailableError("gone"))
        assert run.pause() > 0
        assert (run.request.method, run.request.path) == (first.method, first.path)
        assert run.request.json == first.json
    assert warnings(caplog) == [LOST]
    with pytest.raises(TaskNotFoundError):  # an error is an answer
        run.fail(TaskNotFoundError("unknown"))
    assert warnings(caplog) == [LOST, BACK]


def test_a_read_gives_up_at_the_timeout_of_the_client() -> None:
    short = replace(api(), settings=ClientSettings(timeout=1e-6))
    with pytest.raises(UnavailableError, match="gone"):
        Run(TaskHandle(short, task_id="t1").info()).fail(UnavailableError("gone"))


def test_an_outage_of_many_calls_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    one = api()
    runs = [Run(TaskHandle(one, task_id=f"t{number}").info()) for number in range(100)]
    for run in runs[:99]:
        run.fail(UnavailableError("gone"))
        run.pause()
    runs[0].answer(view())
    assert warnings(caplog) == [LOST, BACK]
    runs[99].fail(UnavailableError("gone"))  # it was made before the answer, so it is part of the same outage
    runs[99].pause()
    for run in runs[1:]:
        run.answer(view())
    assert warnings(caplog) == [LOST, BACK]
    again = Run(TaskHandle(one, task_id="t1").info())
    again.fail(UnavailableError("gone"))
    assert warnings(caplog) == [LOST, BACK, LOST]


def test_the_end_of_an_outage_is_noticed_before_the_task_ends(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    run = Run(task_calls.wait_for_end(api(), "t1", Deadline(60, clock)), clock)
    run.fail(UnavailableError("gone"))
    run.pause()
    assert run.request.params == {"wait": 0.0}
    run.answer(view())
    assert warnings(caplog) == [LOST, BACK]
    run.pause()
    assert run.request.params == {"wait": task_calls.MAX_WAIT}


def test_an_overload_is_not_called_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(TaskHandle(api(), task_id="t1").info())
    run.fail(OverloadedError("full"))
    assert warnings(caplog) == ["the control plane is overloaded; retrying: full"]


def test_an_event_with_a_key_is_sent_until_it_is_stored() -> None:
    clock = Clock()
    event = EventDefinition(event_obj_str="{}", idempotency_key="mine")
    run = Run(task_calls.send_event(API, "/tasks/t1/events", event, Deadline(10, clock)), clock)
    for _ in range(2):
        assert (run.request.path, run.request.json) == ("/tasks/t1/events", event)
        run.fail(UnavailableError("no answer"), after=1)
        run.pause()
    run.answer()
    assert run.done
    run = Run(task_calls.send_event(API, "/tasks/t1/events", event, Deadline(1, clock)), clock)
    with pytest.raises(UnavailableError):
        run.fail(UnavailableError("no answer"), after=2)


def test_an_event_without_a_key_is_sent_once() -> None:
    event = EventDefinition(event_obj_str="{}")
    run = Run(task_calls.send_event(API, "/tasks/t1/events", event, Deadline(10)))
    with pytest.raises(UnavailableError):
        run.fail(UnavailableError("no answer"))


def test_a_session_sends_events_to_its_own_tasks() -> None:
    event = EventDefinition(event_obj_str="{}")
    run = Run(Session(API, "s1").send_event_def("t1", event))
    assert (run.request.path, run.request.json) == ("/sessions/s1/tasks/t1/send_event", event)
    run.answer()
    assert run.done


def test_a_control_plane_that_answers_waiting_requests_early_is_not_flooded() -> None:
    clock = Clock()
    run = Run(task_calls.wait_for_end(API, "t1", Deadline(60, clock)), clock)
    run.answer(view(), after=0.01)
    assert run.pause() == 0.1
    run.answer(view(), after=30)
    run.answer(view("succeeded"))
    assert run.done


def test_a_task_that_is_known_to_have_ended_is_not_requested_again() -> None:
    known = TaskView.model_validate(view("succeeded"))
    with pytest.raises(StopIteration) as end:
        task_calls.wait_for_end(API, "t1", Deadline(1), known).send(None)
    assert end.value.value is known


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        ("failed", TaskFailedError, "task t1 of service adder failed: builtins.ValueError: no such number"),
        ("timed_out", TaskFailedError, "exceeded its time limit"),
        ("cancelled", TaskCancelledError, "was cancelled"),
    ],
)
def test_a_task_that_did_not_succeed_raises_with_its_error(
    status: str, error: type[TaskFailedError], text: str
) -> None:
    run = Run(task_calls.run(API, submission(), Deadline(5)))
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


def test_a_submission_without_a_response_is_retried_with_the_same_id() -> None:
    clock = Clock()
    run = Run(task_calls.submit(API, build_submission("adder", {}), Deadline(120, clock)), clock)
    first = run.request.json.task_id
    pauses = []
    for _ in range(7):
        run.fail(UnavailableError("gone"))
        pauses.append(run.pause())
        assert run.request.json.task_id == first
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    run.answer(view())
    assert run.result.status is TaskStatus.RUNNING


def test_a_submission_without_a_response_raises_at_the_deadline() -> None:
    clock = Clock()
    run = Run(task_calls.submit(API, submission(), Deadline(1, clock)), clock)
    run.fail(UnavailableError("gone"), after=0.95)
    assert run.pause() == pytest.approx(0.05)
    with pytest.raises(UnavailableError, match="gone"):
        run.fail(UnavailableError("gone"))


def test_an_overloaded_server_sets_the_pause() -> None:
    clock = Clock()
    run = Run(task_calls.submit(API, submission(), Deadline(10, clock)), clock)
    run.fail(OverloadedError("full", retry_after=3))
    assert run.pause() == 3
    run.answer(view())
    assert run.done


def test_a_rejected_submission_is_not_retried() -> None:
    run = Run(task_calls.submit(API, submission(), Deadline(10)))
    with pytest.raises(ServiceNotFoundError):
        run.fail(ServiceNotFoundError("nobody", service_name="adder"))


def test_a_restart_of_the_control_plane_does_not_end_the_wait() -> None:
    clock = Clock()
    run = Run(task_calls.run(API, submission(), Deadline(60, clock)), clock)
    run.answer(view())
    run.fail(UnavailableError("gone"))
    run.pause()
    assert run.request.method == "GET"
    run.answer(view("succeeded"))
    assert run.result.value == 7


def test_an_outage_until_the_deadline_is_a_timeout() -> None:
    clock = Clock()
    run = Run(task_calls.wait_for_end(API, "t1", Deadline(1, clock)), clock)
    with pytest.raises(TaskTimeoutError, match="gone"):
        run.fail(UnavailableError("gone"), after=1)


def test_a_response_of_an_unexpected_form_raises() -> None:
    run = Run(TaskHandle(API, task_id="t1").info())
    with pytest.raises(InternalServerError, match="/tasks/t1"):
        run.answer({"hello": "world"})


def test_ids_are_quoted_in_paths() -> None:
    assert Run(TaskHandle(API, task_id="a/b c?d").info()).request.path == "/tasks/a%2Fb%20c%3Fd"


@pytest.mark.parametrize("changes", [{"task_id": ""}, {"max_attempts": 0}, {"session_id": ""}])
def test_an_invalid_submission_is_rejected_before_it_is_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(changes))):
        build_submission("adder", {}, **changes)


def test_session_state_carries_its_version() -> None:
    run = Run(Session(API, "s1").get_state())
    assert (run.request.method, run.request.path) == ("GET", "/sessions/s1/state")
    run.answer({"a": 1}, headers={"etag": '"4"'})
    assert (run.result.state, run.result.version) == ({"a": 1}, 4)

    run = Run(Session(API, "s1").set_state({"a": 2}, version=4))
    assert (run.request.method, run.request.headers["If-Match"]) == ("PUT", '"4"')
    run.answer({"a": 2}, headers={"etag": '"5"'})
    assert run.result.version == 5

    run = Run(Session(API, "s1").update_state({"b": 3}))
    assert (run.request.method, run.request.json) == ("POST", {"b": 3})
    run.answer({"a": 2, "b": 3}, headers={"etag": '"6"'})
    assert run.result.version == 6


def test_session_state_without_a_version_raises() -> None:
    run = Run(Session(API, "s1").get_state())
    with pytest.raises(InternalServerError, match="ETag"):
        run.answer({"a": 1})


def test_sessions_are_listed_page_by_page() -> None:
    run = Run(SessionCollection(API).list())
    assert run.request.params == {"after": "", "limit": 1000}
    run.answer({f"s{n:04}": {"session_id": f"s{n:04}"} for n in range(1000)})
    assert run.request.params == {"after": "s0999", "limit": 1000}
    run.answer({"s1000": {"session_id": "s1000"}})
    assert run.request.params == {"after": "s1000", "limit": 1000}
    run.answer({})
    assert [found.id for found in run.result] == [f"s{n:04}" for n in range(1001)]


def test_a_session_is_created_with_the_id_that_was_asked_for() -> None:
    run = Run(SessionCollection(API).get_or_create("mine", policy="parallel"))
    assert run.request.json.model_dump(mode="json") == {
        "session_id": "mine",
        "policy": "parallel",
        "tags": [],
    }
    run.answer("mine")
    assert run.result.id == "mine"


@pytest.mark.parametrize(("session_id", "policy"), [("mine", "sometimes"), ("", "enqueue")])
def test_an_invalid_session_is_rejected_before_it_is_sent(session_id: str, policy: str) -> None:
    with pytest.raises(InvalidRequestError):
        Run(SessionCollection(API).get_or_create(session_id, policy=policy))


def test_services_have_an_id() -> None:
    collection = ServiceCollection(API)
    run = Run(collection.list())
    run.answer({"adder": {"service_name": "adder", "description": "Adds.", "host": "h", "port": 1}})
    assert [service.id for service in run.result] == ["adder"]
    assert collection.items["adder"].description == "Adds."

    run = Run(collection.register(ServiceDefinition(service_name="adder")))
    run.answer({"host": "127.0.0.1"})
    assert run.result.id == "adder"


def test_an_api_server_that_does_not_respond_is_down() -> None:
    run = Run(ApiServer(API).status())
    run.fail(UnavailableError("gone"))
    assert run.result.status == "Down"


def test_a_deployment_is_uploaded_as_a_file() -> None:
    run = Run(ApiServer(API).deployments.create(BytesIO(b"name: mine\n"), reload=True))
    assert run.request.params == {"reload": "true"}
    assert run.request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert run.request.content is not None
    assert b'name="config_file"; filename="deployment.yaml"' in run.request.content
    assert b"name: mine\n" in run.request.content
    run.answer({"name": "mine"})
    assert run.result.id == "mine"


def test_requests_about_a_deployment_task_name_its_session() -> None:
    run = Run(DeploymentTasks(API, "mine").list())
    run.answer([TaskDefinition(input="{}", task_id="t1", session_id="s1").model_dump()])
    run = Run(run.result[0].results())
    assert (run.request.path, run.request.params) == (
        "/deployments/mine/tasks/t1/results",
        {"session_id": "s1"},
    )
