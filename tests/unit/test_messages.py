"""The envelope and its codec: what is known goes through unchanged, what is not is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.errors import MessageDecodeError, SerializationError
from llama_deploy.messages import MAX_DEPTH, ActionTypes, QueueMessage, QueueMessageStats

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
MESSAGES = st.builds(
    QueueMessage,
    id_=st.text(min_size=1),
    publisher_id=st.text(),
    data=st.dictionaries(st.text(), JSON_VALUES, max_size=5),
    action=st.none() | st.sampled_from(ActionTypes),
    stats=st.builds(QueueMessageStats, publish_time=st.none() | st.text()),
    type=st.text(),
    headers=st.dictionaries(st.text(), st.text(), max_size=3),
)


@given(MESSAGES)
def test_a_message_survives_the_wire(message: QueueMessage) -> None:
    assert QueueMessage.decode(message.encode()) == message


@given(st.binary() | st.text())
def test_arbitrary_bytes_are_refused_with_one_error(raw: bytes | str) -> None:
    try:
        QueueMessage.decode(raw)
    except MessageDecodeError:
        return
    assert isinstance(json.loads(raw), dict), "only an object can be a message"


@given(JSON_VALUES)
def test_arbitrary_json_is_refused_with_one_error(value: Any) -> None:
    try:
        message = QueueMessage.from_wire(value)
    except MessageDecodeError:
        return
    assert QueueMessage.decode(message.encode()) == message


@given(st.floats())
def test_numbers_that_json_lacks_are_not_lost(number: float) -> None:
    (back,) = QueueMessage.decode(QueueMessage(data={"x": number}).encode()).data.values()
    assert repr(back) == repr(number)


def test_the_wire_form_has_a_version() -> None:
    assert QueueMessage().to_wire()["v"] == 1


def test_a_message_of_0_6_without_a_version_is_read() -> None:
    wire = QueueMessage(data={"a": 1}, action=ActionTypes.NEW_TASK).to_wire()
    del wire["v"]
    assert QueueMessage.from_wire(wire).data == {"a": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": "1"},
        {"v": True},
        {"v": None},
        {"action": "make_coffee"},
        {"data": [1]},
        {"id_": 7},
        {"headers": {"traceparent": 7}},
    ],
)
def test_a_value_that_is_not_known_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MessageDecodeError):
        QueueMessage.from_wire({**QueueMessage().to_wire(), **change})


def test_the_error_names_the_field() -> None:
    with pytest.raises(MessageDecodeError, match="publisher_id"):
        QueueMessage.from_wire({"publisher_id": 1})


def test_an_unknown_version_is_refused_with_both_versions_and_a_way_out() -> None:
    with pytest.raises(MessageDecodeError, match=r"version 2 .* version 1; upgrade"):
        QueueMessage.from_wire({**QueueMessage().to_wire(), "v": 2})


def test_a_message_has_no_headers_unless_they_are_set() -> None:
    assert QueueMessage().headers == {}
    assert QueueMessage(headers={"traceparent": "00-1-2-01"}).model_dump()["headers"] == {
        "traceparent": "00-1-2-01"
    }


def test_fields_of_a_newer_release_pass_through_an_older_one() -> None:
    wire = {**QueueMessage(data={"a": 1}).to_wire(), "priority": 1}
    wire["stats"]["weight"] = {"kg": 2}
    message = QueueMessage.decode(json.dumps(wire))
    assert message.data == {"a": 1}
    assert json.loads(message.encode()) == wire


@pytest.mark.parametrize("value", [object(), {1, 2, object()}, "\ud800"])
def test_data_that_is_no_json_cannot_be_sent(value: Any) -> None:
    with pytest.raises(SerializationError):
        QueueMessage(data={"value": value}).encode()


def _nested(levels: int, *, beside: int = 0) -> Any:
    """Objects and lists inside each other on so many levels, the innermost with lists side by side."""
    value: Any = [[]] * beside if beside else []
    for level in range(levels - (2 if beside else 1)):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("beside", [0, 500])
def test_what_is_nested_deeper_than_receivers_read_is_refused_where_it_is_sent(beside: int) -> None:
    # The message and its `data` are two levels.
    message = QueueMessage(data={"value": _nested(MAX_DEPTH - 2, beside=beside)})
    assert QueueMessage.decode(message.encode()) == message
    with pytest.raises(SerializationError, match="deep"):
        QueueMessage(data={"value": _nested(MAX_DEPTH - 1, beside=beside)}).encode()


@pytest.mark.parametrize("levels", [260, 5000])
def test_no_depth_breaks_the_codec(levels: int) -> None:
    with pytest.raises(SerializationError):
        QueueMessage(data={"value": _nested(levels)}).encode()


def test_many_brackets_side_by_side_are_not_deep() -> None:
    message = QueueMessage(data={"value": [{"a": []}] * 1000})
    assert QueueMessage.decode(message.encode()) == message
