from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from workflows.context.serializers import JsonSerializer
from workflows.events import Event, HumanResponseEvent, StopEvent

from llama_deploy.client.payload_encoding import (
    decode_result,
    encode_arguments,
    encode_event,
    encode_json_object,
)
from llama_deploy.errors import InvalidRequestError, SerializationError


class Point(BaseModel):
    x: int
    seen: datetime


class Answer(HumanResponseEvent):
    text: str


class Found(StopEvent):
    points: list[Point]


SEEN = datetime(2026, 1, 1, tzinfo=UTC)


def test_run_arguments_become_plain_json() -> None:
    encoded = encode_arguments({"session": "s"}, {"point": Point(x=1, seen=SEEN), "many": {3}})
    assert encoded == {"session": "s", "point": {"x": 1, "seen": "2026-01-01T00:00:00Z"}, "many": [3]}


def test_an_argument_given_twice_raises() -> None:
    with pytest.raises(InvalidRequestError, match="task_id"):
        encode_arguments({"task_id": 1}, {"task_id": 2})


@pytest.mark.parametrize("encode", [lambda value: encode_arguments(None, value), encode_json_object])
def test_an_error_names_the_location_of_a_value_that_is_not_json(encode: Any) -> None:
    with pytest.raises(SerializationError, match=r"\$\.handler") as caught:
        encode({"fine": 1, "handler": object()})
    assert caught.value.path == "$.handler"


def test_an_event_is_encoded_as_the_workflow_library_does() -> None:
    event = Answer(text="yes", extra=1)
    definition = encode_event(event, service_name="adder")
    assert definition.agent_id == "adder"
    assert json.loads(definition.event_obj_str) == json.loads(JsonSerializer().serialize(event))


def test_an_event_without_an_idempotency_key_gets_a_new_one() -> None:
    event = Answer(text="yes")
    keys = [encode_event(event).idempotency_key for _ in range(2)]
    assert None not in keys
    assert keys[0] != keys[1]
    assert encode_event(event, idempotency_key="mine").idempotency_key == "mine"
    for key in ("", "x" * 201):
        with pytest.raises(InvalidRequestError, match="idempotency_key"):
            encode_event(event, idempotency_key=key)


def test_an_event_that_is_not_json_raises() -> None:
    with pytest.raises(SerializationError, match="HumanResponseEvent"):
        encode_event(HumanResponseEvent(handler=object()))


def test_a_result_has_the_requested_type() -> None:
    found = Found(points=[Point(x=1, seen=SEEN)])
    assert decode_result(found.model_dump(mode="json"), Found, task_id="t1").points == found.points
    answer = Answer(text="yes", extra=1)
    assert decode_result(answer.model_dump(mode="json"), Answer, task_id="t1").extra == 1
    assert decode_result([1, 2], list[int], task_id="t1") == [1, 2]


def test_a_result_of_another_type_raises() -> None:
    with pytest.raises(SerializationError, match="task t1 does not match Point: value: "):
        decode_result("seven", Point, task_id="t1")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([1, None], dtype=object), [1, None]),
    ],
    ids=repr,
)
def test_scalars_and_arrays_of_numpy_are_numbers_and_lists(value: Any, plain: Any) -> None:
    assert encode_arguments(None, {"it": {"of": [value]}}) == {"it": {"of": [plain]}}
    sent = json.loads(encode_event(HumanResponseEvent(it=value)).event_obj_str)
    assert sent["value"]["_data"]["it"] == plain


def test_importing_the_client_does_not_import_the_workflow_library_or_a_server() -> None:
    code = (
        "import sys, llama_deploy.client\n"
        "print([name for name in ('workflows', 'fastapi', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "value", [{1: "a", "1": "b"}, {"a": [{True: 1, "true": 2}]}, ({None: 1, "None": 2},), {1.5: 1, "1.5": 2}]
)
def test_no_key_of_an_argument_is_lost(value: Any) -> None:
    with pytest.raises(SerializationError, match="the same in JSON"):
        encode_arguments({"held": value}, {})
    with pytest.raises(SerializationError, match="the same in JSON"):
        encode_event(Event(held=value))


def test_other_keys_of_an_argument_become_texts() -> None:
    assert encode_arguments({"held": {1: "a", "2": "b"}}, {}) == {"held": {"1": "a", "2": "b"}}
