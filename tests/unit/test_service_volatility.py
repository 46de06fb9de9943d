"""When a run becomes volatile."""

from __future__ import annotations

import pytest

from llama_deploy.errors import SerializationError
from llama_deploy.services.run.journal.volatility import Volatility

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
