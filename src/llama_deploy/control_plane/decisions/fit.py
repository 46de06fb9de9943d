"""Whether a version of a workflow can resume a run that another version has begun. No I/O, no clock.

The rules are a table in `docs/operate/upgrades.md`; each row has a test of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llama_deploy.types.workflow_shape import (
    ClassShape,
    RunNeeds,
    StepNeed,
    StepShape,
    WorkflowShape,
    as_whole,
    bare_name,
    is_whole,
)

_ANYTHING: Final = frozenset({"Any", "object"})


@dataclass(frozen=True, slots=True)
class StoredNeeds:
    """What is known of the needs of a run."""

    fingerprint: str
    """See `RunHeader`."""
    needs: RunNeeds | None
    """None: an older release has written the run."""


def misfit(run: StoredNeeds, offer: WorkflowShape | None) -> str | None:
    """Return why a version cannot resume a run: the step, the class or the field. None: it can.

    Args:
        run: What its journal needs.
        offer: What the version offers. None: it has not said that.
    """
    if offer is None:
        return None if run.needs is None else "it does not say which steps it has: an older release runs it"
    if run.needs is None:
        return None if offer.fingerprint == run.fingerprint else "its steps or their events are others"
    return next(_faults(run.needs, offer), None)


def _faults(needs: RunNeeds, offer: WorkflowShape) -> Iterator[str]:
    for name, need in needs.steps.items():
        yield from _step_faults(name, need, offer.steps.get(name))
    for name, fields in (*needs.classes.items(), *needs.state_classes.items()):
        yield from _class_faults(name, fields, offer.class_named(name))
    if needs.state is not None and not _is_same_class(needs.state, offer.state):
        kept = bare_name(offer.state)
        yield f"the state of the run is a {bare_name(needs.state)}, and this version keeps a {kept}"
    if needs.library_version not in (None, offer.library_version):
        yield (
            f"the run has entries that only version {needs.library_version} of llama-index-workflows reads,"
            f" and this version has {offer.library_version}"
        )


def _step_faults(name: str, need: StepNeed, step: StepShape | None) -> Iterator[str]:
    if step is None:
        yield f"step {name!r} does not exist in this version, and the run needs it"
        return
    for event in need.takes:
        if event not in step.takes:
            yield f"step {name!r} does not take {event} in this version"
    if need.workers is None:
        return
    # Entries are replayed: they lead to the same state only if events go the same ways.
    for event in step.takes:
        if event not in need.takes:
            yield f"step {name!r} takes {event} too in this version, and the run has entries without that"
    if need.workers != step.workers:
        yield (
            f"step {name!r} had num_workers={need.workers} and has {step.workers} in this version, and the"
            " run has entries that depend on it"
        )


def _class_faults(name: str, held: Mapping[str, str] | None, offered: ClassShape | None) -> Iterator[str]:
    bare = bare_name(name)
    if offered is None:
        yield f"class {bare} does not exist in this version, and the run needs it"
        return
    if held is None:
        return
    if is_whole(held) or is_whole(offered.fields):
        if as_whole(held) != as_whole(offered.fields):
            yield f"the fields of {bare} are others in this version"
        return
    for field, kind in held.items():
        if field not in offered.fields:
            yield f"field {field!r} of {bare} does not exist in this version, and the run has stored it"
        elif not _accepts(offered.fields[field], kind):
            yield f"field {field!r} of {bare} was {kind} and is {offered.fields[field]} in this version"
    for field in offered.required:
        if field not in held:
            yield f"field {field!r} of {bare} is required in this version, and the run has stored none"


def _accepts(offered: str, held: str) -> bool:
    """Whether a field of one type may hold what a field of another type held."""
    if offered == held or offered in _ANYTHING:
        return True
    return _parts(held) <= _parts(offered)


def _parts(union: str) -> set[str]:
    """Return the parts of a union such as `list[int | str] | None`."""
    parts, depth = [""], 0
    for word in union.split(" "):
        if word == "|" and not depth:
            parts.append("")
            continue
        depth += word.count("[") - word.count("]")
        parts[-1] += f" {word}"
    return {part.strip() for part in parts}


def _is_same_class(name: str, other: str) -> bool:
    return name == other or bare_name(name) == bare_name(other)
