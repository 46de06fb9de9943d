"""Replays what is stored of a run against the present code, without a server and without running a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_deploy.control_plane.decisions.fit import StoredNeeds, misfit
from llama_deploy.errors import InvalidRequestError
from llama_deploy.services import AnyWorkflow
from llama_deploy.services.run.hosted_workflow import HostedWorkflow
from llama_deploy.types.task_export import TaskExport


@dataclass(frozen=True, slots=True)
class ReplayDifference:
    """The first place at which the present code does not lead to what the run has done."""

    why: str
    """In words."""
    number: int | None = None
    """How many steps have ended before, from the snapshot on. None: all that is stored can be replayed, but
    the run could not go on."""
    step: str | None = None
    """The step that had ended there. None: no step."""
    event: str | None = None
    """The class of the event with which it worked."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """How a run and the present code compare."""

    task_id: str
    steps: int
    """How many ends of steps were replayed."""
    difference: ReplayDifference | None = None
    """None: the run could go on with the present code."""


def replay(
    run: TaskExport | Mapping[str, Any] | str | Path,
    workflow: AnyWorkflow,
    *,
    extra: Iterable[type] = (),
) -> ReplayReport:
    """Replay a run against a workflow, and tell the first step that differs.

    What each step has returned and sent is taken from the run; no step is executed. So a replay tells whether
    the events still reach the same steps, and whether a retry of the task from its last step can use the
    present code. It does not tell whether a step would return something else.

    Example:
        ```python
        report = replay(Path("run.json"), Report)
        assert report.difference is None, report.difference
        ```

    Args:
        run: What `llamactl tasks export` has printed: the text, its path, the decoded JSON or the model.
        workflow: The workflow, its class, or a function that returns one.
        extra: Further classes that its values may have, as `allowed_types` of the service.

    Raises:
        InvalidRequestError: The run has no journal, or is not an export.
        ExportFormatError: A newer release has written it.
    """
    exported = _read(run)
    record = exported.run
    if record is None or not record.goes_on:
        raise InvalidRequestError(
            f"the export of task {exported.task.task_id} has no journal: the journal of a task that has"
            " succeeded is deleted, and a task that has failed in its first step has none"
        )
    hosted = HostedWorkflow.prepare(workflow, extra=list(extra))
    form = hosted.journals
    count = 0
    try:
        for tick in form.replayed(record, workflow=hosted.first, task_id=exported.task.task_id):
            if tick.fault is not None:
                found = ReplayDifference(tick.fault, count, tick.step, tick.event)
                return ReplayReport(exported.task.task_id, count, found)
            count += tick.step is not None
    except (ValueError, KeyError, TypeError) as exc:
        # The steps of the snapshot are others, or its values cannot be read.
        return ReplayReport(exported.task.task_id, count, ReplayDifference(str(exc), count))
    needs = StoredNeeds(record.header.fingerprint, record.needs)
    why = misfit(needs, form.shape)
    difference = None if why is None else ReplayDifference(why)
    return ReplayReport(exported.task.task_id, count, difference)


def _read(run: TaskExport | Mapping[str, Any] | str | Path) -> TaskExport:
    if isinstance(run, TaskExport):
        return run
    return TaskExport.read(run.read_text(encoding="utf-8") if isinstance(run, Path) else run)
