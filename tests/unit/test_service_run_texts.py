"""A run as texts: when its state has to be written again, and where what is written may be read."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import pytest
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from workflows.plugins.basic import AsyncioAdapterQueues, InternalAsyncioAdapter

from llama_deploy.errors import SignatureError
from llama_deploy.services.run.attempt_reports import MAX_MESSAGE_CHARACTERS
from llama_deploy.services.run.hosted_workflow import HostedWorkflow
from llama_deploy.services.run.journal.journal_format import RunHistory, RunSnapshot
from llama_deploy.services.run.journal.needs_tracker import NeedsTracker
from llama_deploy.services.run.journal.run_texts import RunTexts
from llama_deploy.services.run.journal.stored_state import StoredState
from llama_deploy.types.run_points import mark_of
from llama_deploy.types.state_changes import StateChange
from llama_deploy.workflow_library import BrokerState, TickAddEvent

NOTHING = StoredState()


class Nothing(Workflow):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


@pytest.fixture
def hosted() -> HostedWorkflow:
    return HostedWorkflow.prepare(Nothing(), keys=[SecretStr("k" * 32)])


@pytest.fixture
def adapter(hosted: HostedWorkflow) -> InternalAsyncioAdapter:
    """The library's access to a run that has begun."""
    store = Context(hosted.first).store
    state = BrokerState.from_workflow(hosted.first)
    return InternalAsyncioAdapter(AsyncioAdapterQueues("run", state, store))


def texts_of(hosted: HostedWorkflow, *, state: StoredState = NOTHING, task_id: str = "task") -> RunTexts:
    needs = NeedsTracker(hosted.first, hosted.journals.shape)
    return RunTexts(hosted.journals, task_id, RunHistory(), needs, state=state)


async def test_a_state_is_written_when_it_has_changed(
    hosted: HostedWorkflow, adapter: InternalAsyncioAdapter
) -> None:
    texts, store = texts_of(hosted), adapter.get_state_store()
    assert store is not None
    assert await texts.changed_state() is None, "the run has not begun"
    texts.attach(adapter)
    assert await texts.changed_state() is None, "an empty state is not worth a text"
    await store.set("count", 1)
    written = await texts.changed_state()
    assert written is not None
    assert "count" in texts.state.text
    assert texts.state.sealed == written.sealed
    assert await texts.changed_state() is None
    again = texts_of(hosted, state=texts.state)
    again.attach(adapter)
    assert await again.changed_state() is None, "it was written by an earlier attempt"
    texts.state = NOTHING
    assert await texts.changed_state() == written, "the write was refused"


async def test_a_state_leads_back_to_the_one_that_was_stored_before(
    hosted: HostedWorkflow, adapter: InternalAsyncioAdapter
) -> None:
    """Also if a key signs by now that is not the one that has signed that state."""
    texts, store = texts_of(hosted), adapter.get_state_store()
    assert store is not None
    texts.attach(adapter)
    await store.set("count", 1)
    first = await texts.changed_state()
    assert first is not None
    signed_before = first.sealed.replace(first.sealed.partition("\n")[0], "another signature")
    again = texts_of(hosted, state=StoredState.of(texts.state.text, signed_before))
    again.attach(adapter)
    await store.set("count", 2)
    second = await again.changed_state()
    assert second is not None
    assert second.change is not None
    change = StateChange.model_validate_json(second.change)
    assert change.undone(second.sealed) == signed_before
    assert (change.before, change.after) == (mark_of(signed_before), mark_of(second.sealed))
    assert again.state.mark == change.after


def test_an_entry_is_read_under_its_number_and_task_only(hosted: HostedWorkflow) -> None:
    tick, writing = TickAddEvent(event=Event(number=1)), hosted.journals.writing
    (entry,) = texts_of(hosted).entries([tick], first=7)
    assert '"number":1' in writing.open(entry, context="journal:task:7")
    for elsewhere in ("journal:task:8", "journal:other:7", "state:task"):
        with pytest.raises(SignatureError):
            writing.open(entry, context=elsewhere)


def test_entries_too_large_for_one_write_are_numbered_in_order(hosted: HostedWorkflow) -> None:
    large = "x" * MAX_MESSAGE_CHARACTERS
    ticks = [TickAddEvent(event=Event(number=number, text=large)) for number in range(3)]
    entries = texts_of(hosted).entries(ticks, first=4)
    assert len(entries) == 3
    for seq, entry in enumerate(entries, start=4):
        assert hosted.journals.writing.open(entry, context=f"journal:task:{seq}")


async def test_a_snapshot_is_made_of_a_run_while_it_goes_on(
    hosted: HostedWorkflow, adapter: InternalAsyncioAdapter
) -> None:
    texts = texts_of(hosted)
    assert texts.snapshot(idle=False, has_asked=True) is None, "the run has not begun"
    texts.attach(adapter)
    await adapter.on_tick(TickAddEvent(event=StartEvent()))
    assert texts.snapshot(idle=True, has_asked=True) is None, "a step is about to run"
    made = texts.snapshot(idle=False, has_asked=True)
    assert made is not None
    assert RunSnapshot.model_validate_json(made.text).has_asked
    assert adapter.replay(), "they are needed until the snapshot is stored"
    made.forget()
    assert not adapter.replay()
    texts.detach()
    assert texts.snapshot(idle=False, has_asked=True) is None


async def test_what_only_snapshots_need_is_forgotten(
    hosted: HostedWorkflow, adapter: InternalAsyncioAdapter
) -> None:
    texts = texts_of(hosted, state=StoredState("known"))
    texts.forget()
    texts.attach(adapter)
    await adapter.on_tick(TickAddEvent(event=StartEvent()))
    texts.forget()
    assert (texts.state, adapter.replay()) == (NOTHING, [])
