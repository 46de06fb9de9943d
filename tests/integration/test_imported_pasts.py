"""Exported tasks that somebody has changed: each is refused before anything of it is stored."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import TaskStatus
from tests.integration.in_process import running_stack, until
from tests.integration.repairable_workflows import Answer, Approved, has_taken

Document = dict[str, Any]
NUL, SURROGATE = "\0", "\ud800"


@pytest.fixture(scope="module")
def exported() -> Document:
    """Return a task whose run was parked twice, as it is exported."""
    return asyncio.run(export_of_parked())


async def export_of_parked() -> Document:
    async with running_stack() as stack:
        workflow = Approved()
        async with stack.serving(stack.service(workflow, idle_timeout=0.0)):
            task_id = await stack.submit()
            for text in ("ann", "bob"):
                await until(lambda: stack.is_parked(task_id))
                await stack.send(task_id, Answer(text=text))
                await until(lambda text=text: has_taken(workflow, text))
            assert (await stack.end(task_id)).status is TaskStatus.FAILED
        document: Document = json.loads((await stack.plane.exports.export(task_id)).model_dump_json())
    return document


def replaced(document: Document) -> Document:
    found: Document = next(each["replaced"] for each in document["past"] if each["replaced"])
    return found


def change(document: Document) -> Document:
    found: Document = next(each["state_change"] for each in document["past"] if each["state_change"])
    return found


def texts_with(bad: str) -> dict[str, Callable[[Document], object]]:
    """Return what puts a character into each text."""
    return {
        "snapshot": lambda each: replaced(each).update(snapshot=bad),
        "fingerprint": lambda each: replaced(each).update(fingerprint=bad),
        "library version": lambda each: replaced(each).update(library_version=bad),
        "entries": lambda each: replaced(each).update(entries=[bad]),
        "needs": lambda each: replaced(each).update(needs=f"{{}}{bad}"),
        "splices": lambda each: change(each).update(splices=[[0, 1, bad]]),
        "marks": lambda each: change(each).update(before=bad),
        "origin": lambda each: each["run"].update(origin={"task_id": bad, "renewals": []}),
        "a step": lambda each: each["steps"][0].update(step=bad),
        "a point": lambda each: each["steps"][0].update(point=bad),
        "state": lambda each: each["run"].update(state=bad),
        "an event type": lambda each: each["events"][0].update(type=bad),
    }


CHANGES: dict[str, Callable[[Document], object]] = {
    "past seq": lambda each: each["past"][0].update(seq=2**70),
    "past snapshots": lambda each: each["past"][0].update(snapshots=2**70),
    "first entry too great": lambda each: replaced(each).update(first=2**70),
    "first entry negative": lambda each: replaced(each).update(first=-1),
    "places twice": lambda each: each["past"].append(each["past"][-1]),
    "snapshots too many": lambda each: each["run"].update(snapshots=2**70),
    "snapshots negative": lambda each: each["run"].update(snapshots=-1),
    "journal too long": lambda each: each["run"].update(next_seq=2**70),
    "attempt": lambda each: each["task"].update(attempt=2**70),
    "attempt of an event": lambda each: each["events"][0].update(attempt=2**70),
    "attempt of an event, negative": lambda each: each["events"][0].update(attempt=-1),
    "step run of an event": lambda each: each["events"][0].update(step_run=2**70),
    "index of an event": lambda each: each["events"][-1].update(index=2**70),
    "attempt of a step": lambda each: each["steps"][0].update(attempt=2**70, step_id=None),
    "id of a step": lambda each: each["steps"][0].update(step_id=f"1.{'9' * 17}"),
    "needs are not JSON": lambda each: replaced(each).update(needs="no"),
    "needs are of another kind": lambda each: replaced(each).update(needs='{"steps": 1}'),
    **{f"NUL in {place}": work for place, work in texts_with(NUL).items()},
    **{f"surrogate in {place}": work for place, work in texts_with(SURROGATE).items()},
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_changed_export_is_refused(exported: Document, name: str) -> None:
    async with running_stack() as stack:
        document = copy.deepcopy(exported)
        CHANGES[name](document)
        with pytest.raises(InvalidRequestError):
            await stack.plane.exports.import_(document, task_id="copy")
        assert await stack.store.read(lambda tx: tx.sessions.page()) == []


async def test_the_unchanged_export_is_stored(exported: Document) -> None:
    async with running_stack() as stack:
        assert await stack.plane.exports.import_(exported, task_id="copy") == "copy"
