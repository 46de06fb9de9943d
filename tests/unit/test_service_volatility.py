"""When a run becomes volatile, and when its state has to be written again."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import pytest
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.errors import SerializationError
from llama_deploy.services.run.volatility import Volatility
from llama_deploy.services.run.written_state import WrittenState
from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.services.values.writing import Writing

ERROR = SerializationError("no", path="$.tool", holds="OpenAI")


def test_a_run_becomes_volatile_once_with_the_first_reason() -> None:
    told: list[str] = []
    volatility = Volatility(told.append)
    assert (bool(volatility), volatility.due) == (False, None)
    assert volatility.on_change is not None
    volatility.on_change("the step 'a' has set `self.x`")
    volatility.on_change("the step 'b' has set `self.y`")
    reason = volatility.due
    assert reason == "the step 'a' has set `self.x`"
    volatility.begin(reason)
    assert (bool(volatility), volatility.due) == (True, None)
    assert told == [volatility.reason] == [reason]


def test_an_error_gives_the_reason_if_the_run_may_be_volatile() -> None:
    assert Volatility(lambda _: None).reason_for(ERROR) == "$.tool holds an OpenAI"
    strict = Volatility()
    assert strict.on_change is None, "what steps change is not looked at"
    with pytest.raises(SerializationError):
        strict.reason_for(ERROR)
    assert not strict


class Nothing(Workflow):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


async def test_a_state_is_written_when_it_has_changed() -> None:
    workflow = Nothing()
    store = Context(workflow).store
    codec = StateCodec(workflow, Writing(workflow))
    written = WrittenState(codec, "")
    assert await written.change(None) is None
    assert await written.change(store) is None, "an empty state is not worth a text"
    await store.set("count", 1)
    text = await written.change(store)
    assert text is not None
    assert "count" in text
    assert await written.change(store) is None
    assert await WrittenState(codec, text).change(store) is None, "it was written by an earlier attempt"
    written.text = ""
    assert await written.change(store) == text, "the write was refused"
