"""What a session holds of a workflow's state, and what this release cannot read of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.errors import SerializationError, SignatureError
from llama_deploy.services.values.session_state import StateCodec, WorkflowState
from llama_deploy.services.values.writing import Writing

KEY = SecretStr("a key of sufficient length")


class Counting(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("count", await ctx.store.get("count", default=0) + ev.get("by", 1))
        return StopEvent(result="done")


def states(*keys: SecretStr) -> StateCodec:
    workflow = Counting()
    return StateCodec(workflow, Writing(workflow, keys=keys))


async def captured(codec: StateCodec) -> dict[str, Any]:
    """Return what a session holds after a run."""
    handler = Counting().run()
    await handler
    assert handler.ctx is not None
    call = WorkflowState(session_id="s")
    await codec.save(handler.ctx, call)
    return call.state


@pytest.mark.parametrize("keys", [(), (KEY,)])
async def test_what_a_run_has_left_is_found_again(keys: tuple[SecretStr, ...]) -> None:
    codec = states(*keys)
    context = await codec.load(WorkflowState(state=await captured(codec), session_id="s"))
    assert context is not None
    assert await context.store.get("count") == 1


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize("held", [{"state": {"count": 1}}, '{"count": 1}', ""])
async def test_a_state_of_another_form_is_told(held: object, keys: tuple[SecretStr, ...]) -> None:
    codec = states(*keys)
    with pytest.raises(
        SerializationError, match="was written by an older release; start a new session"
    ) as caught:
        await codec.load(WorkflowState(state={codec.key: held}, session_id="s"))
    assert caught.value.path == f"$[{codec.key!r}]"


async def test_a_state_without_signature_is_refused_once_there_is_a_key() -> None:
    unsigned = await captured(states())
    with pytest.raises(SignatureError, match="it is not signed"):
        await states(KEY).load(WorkflowState(state=unsigned, session_id="s"))
