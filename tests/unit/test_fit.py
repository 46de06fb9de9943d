"""Which version of a workflow can resume a run: one test for each row of the table in the documentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from llama_deploy.control_plane.decisions.fit import StoredNeeds, misfit
from llama_deploy.types.workflow_shape import (
    ClassShape,
    RunNeeds,
    StepNeed,
    StepShape,
    WorkflowShape,
    as_whole,
)

TABLE: Final = Path(__file__).parents[2] / "docs/operate/upgrades.md"
FIELDS: Final = {"text": "str", "note": "None | str"}
STATE: Final = {"count": "int"}


def shape(**changes: Any) -> WorkflowShape:
    """Return a version whose step `hear` takes what its step `ask` has asked for."""
    fields: dict[str, Any] = {
        "fingerprint": "old",
        "library_version": "2.26.1",
        "steps": {
            "ask": StepShape(takes=["StartEvent"], returns=["Ask"], workers=4),
            "hear": StepShape(takes=["Answer"], returns=["StopEvent"], workers=4),
            "tidy": StepShape(takes=["Mess"], returns=["None"], workers=4),
        },
        "classes": {
            "app.Answer": ClassShape(fields=FIELDS, required=["text"]),
            "app.Counts": ClassShape(fields=STATE),
            "app.Mess": ClassShape(fields={}),
        },
        "state": "app.Counts",
    }
    return WorkflowShape(**{**fields, **changes})


def steps(**changes: StepShape | None) -> WorkflowShape:
    known = {**shape().steps, **changes}
    return shape(steps={name: step for name, step in known.items() if step is not None})


def classes(**changes: ClassShape | None) -> WorkflowShape:
    known = {**shape().classes, **{f"app.{name}": cls for name, cls in changes.items()}}
    return shape(classes={name: cls for name, cls in known.items() if cls is not None})


def answer(fields: dict[str, str], *required: str) -> WorkflowShape:
    return classes(Answer=ClassShape(fields=fields, required=list(required)))


FOLDED: Final = RunNeeds(
    steps={"hear": StepNeed(takes=["Answer"])},
    classes={"app.Answer": FIELDS},
    state="app.Counts",
    state_classes={"app.Counts": STATE},
)
WITH_ENTRIES: Final = FOLDED.model_copy(
    update={
        "steps": {
            "ask": StepNeed(takes=["StartEvent"], workers=4),
            "hear": StepNeed(takes=["Answer"], workers=4),
        },
        "library_version": "2.26.1",
    }
)


def folded(offer: WorkflowShape) -> str | None:
    return misfit(StoredNeeds("old", FOLDED), offer)


def with_entries(offer: WorkflowShape) -> str | None:
    return misfit(StoredNeeds("old", WITH_ENTRIES), offer)


def moved(offer: WorkflowShape) -> WorkflowShape:
    shapes = {name.replace("app.", "app.events."): cls for name, cls in offer.classes.items()}
    return offer.model_copy(update={"classes": shapes, "state": "app.events.Counts"})


NEW_STEP: Final = StepShape(takes=["StartEvent", "Answer"], workers=1)
OTHER_WORKERS: Final = StepShape(takes=["Answer"], workers=1)
RULES: Final[dict[str, tuple[Callable[[], str | None], str | None]]] = {
    "A step is added": (lambda: folded(steps(new=NEW_STEP)) or with_entries(steps(new=NEW_STEP)), None),
    "A step is removed or renamed that the run does not need": (
        lambda: folded(steps(tidy=None, ask=None)) or with_entries(steps(tidy=None)),
        None,
    ),
    "A step is removed or renamed that the run needs": (
        lambda: folded(steps(hear=None, listen=shape().steps["hear"])),
        "step 'hear' does not exist",
    ),
    "A step does not take an event any more that waits for it": (
        lambda: folded(steps(hear=StepShape(takes=["Reply"]))),
        "step 'hear' does not take Answer",
    ),
    "A step takes further events": (lambda: folded(steps(hear=StepShape(takes=["Answer", "Reply"]))), None),
    "A step takes further events, and the run has entries": (
        lambda: with_entries(steps(hear=StepShape(takes=["Answer", "Reply"]))),
        "step 'hear' takes Reply too",
    ),
    "A step returns other events": (
        lambda: with_entries(steps(hear=StepShape(takes=["Answer"], returns=["Ask"]))),
        None,
    ),
    "The code, the retry policy or the time limit of a step or the workflow changes": (
        lambda: with_entries(shape()),
        None,
    ),
    "A step has another `num_workers`": (lambda: folded(steps(hear=OTHER_WORKERS)), None),
    "A step has another `num_workers`, and the run has entries": (
        lambda: with_entries(steps(hear=OTHER_WORKERS)),
        "step 'hear' had num_workers=4 and has 1",
    ),
    "A field with a default is added": (lambda: folded(answer({**FIELDS, "age": "int"}, "text")), None),
    "A field without a default is added to a class of which the run holds objects": (
        lambda: folded(answer({**FIELDS, "age": "int"}, "text", "age")),
        "field 'age' of Answer is required",
    ),
    "A field is removed or renamed in a class of which the run holds objects": (
        lambda: folded(answer({"text": "str"}, "text")),
        "field 'note' of Answer does not exist",
    ),
    "The type of a field changes in such a class": (
        lambda: folded(answer({**FIELDS, "text": "int"}, "text")),
        "field 'text' of Answer was str and is int",
    ),
    "The type of a field becomes wider: `Any`, or a union with the old type": (
        lambda: (
            folded(answer({"text": "Any", "note": "None | int | str"}, "text"))
            or folded(answer({**FIELDS, "text": "list[int] | str"}, "text"))
        ),
        None,
    ),
    "A default is added or removed": (lambda: folded(answer(FIELDS, "text", "note")), None),
    "A class of which the run holds no objects changes in any way": (
        lambda: folded(classes(Mess=None)),
        None,
    ),
    "A class is renamed of which the run holds objects, or for which it waits": (
        lambda: folded(classes(Answer=None, Reply=shape().classes["app.Answer"])),
        "class Answer does not exist",
    ),
    "A class moves to another module": (lambda: folded(moved(shape())), None),
    "A field with a default is added to the class of the state": (
        lambda: folded(classes(Counts=ClassShape(fields={**STATE, "last": "str"}))),
        None,
    ),
    "The class of the state changes otherwise, or is another one": (
        lambda: folded(shape(state="app.Totals")),
        "the state of the run is a Counts, and this version keeps a Totals",
    ),
    "The workflow library has another version": (lambda: folded(shape(library_version="2.27.0")), None),
    "The workflow library has another version, and the run has entries": (
        lambda: with_entries(shape(library_version="2.27.0")),
        "only version 2.26.1 of llama-index-workflows reads",
    ),
}
"""What becomes of a workflow, with the fault that follows. None: the run fits."""


@pytest.mark.parametrize("change", RULES)
def test_a_change_of_the_workflow(change: str) -> None:
    fault, expected = RULES[change]
    found = fault()
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert expected in found


def test_the_table_in_the_documentation_has_these_rules() -> None:
    rows = re.findall(r"^\| (.+?) \| (yes|no) \|", TABLE.read_text(), re.MULTILINE)
    assert dict(rows) == {change: "yes" if fault is None else "no" for change, (_, fault) in RULES.items()}


def test_the_state_counts_like_other_data() -> None:
    assert folded(classes(Counts=ClassShape(fields={"count": "str"}))) == (
        "field 'count' of Counts was int and is str in this version"
    )


def test_of_a_run_of_an_older_release_only_the_fingerprint_is_known() -> None:
    assert misfit(StoredNeeds("old", None), shape()) is None
    assert misfit(StoredNeeds("other", None), shape()) is not None


def test_an_instance_that_offers_nothing_runs_what_needs_nothing_known() -> None:
    assert misfit(StoredNeeds("old", None), None) is None
    assert misfit(StoredNeeds("old", FOLDED), None) is not None


def test_large_classes_are_compared_as_a_whole() -> None:
    whole = as_whole(FIELDS)
    held = FOLDED.model_copy(update={"classes": {"app.Answer": whole}})
    assert misfit(StoredNeeds("old", held), shape()) is None
    assert folded(answer(whole)) is None
    assert folded(answer(as_whole({"text": "str"}))) == "the fields of Answer are others in this version"


def test_a_class_that_is_only_named_may_change() -> None:
    named = FOLDED.model_copy(update={"classes": {"app.Answer": None}})
    assert misfit(StoredNeeds("old", named), answer({"other": "int"}, "other")) is None
    assert misfit(StoredNeeds("old", named), classes(Answer=None)) is not None


def test_two_classes_of_one_name_are_told_apart_by_their_modules() -> None:
    known = shape().classes
    both = {
        "a.Answer": known["app.Answer"],
        "b.Answer": ClassShape(fields={}),
        "app.Counts": known["app.Counts"],
    }
    assert folded(shape(classes=both)) == "class Answer does not exist in this version, and the run needs it"


def test_a_version_is_told_by_all_that_it_offers() -> None:
    assert shape().version == shape().version
    others = [
        steps(tidy=None),
        classes(Mess=None),
        shape(state="app.Totals"),
        shape(library_version="2.27.0"),
    ]
    assert len({shape().version, *(other.version for other in others)}) == 5
