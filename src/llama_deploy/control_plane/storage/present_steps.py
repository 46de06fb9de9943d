"""The steps that the tasks of an instance were running at its last heartbeat, as its row has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydantic import TypeAdapter

from llama_deploy.state_stores.records import InstanceRecord
from llama_deploy.types.instance_protocol import HeldAttempt
from llama_deploy.types.task_lists import PresentStep

_PRESENT: Final = TypeAdapter(dict[str, list[PresentStep]])


def present_text(held: Iterable[HeldAttempt]) -> str | None:
    """Return `InstanceRecord.present` for the attempts of a heartbeat."""
    steps = {each.task_id: each.steps for each in held if each.steps}
    return _PRESENT.dump_json(steps).decode() if steps else None


def present_steps(instance: InstanceRecord, task_id: str) -> list[PresentStep]:
    """Return the steps of a task that an instance was running."""
    return [] if instance.present is None else _PRESENT.validate_json(instance.present).get(task_id, [])
