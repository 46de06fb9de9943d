"""What a filter of tasks accepts, and when two filters are the same."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llama_deploy.types.task_lists import TaskFilter


def test_a_filter_of_nothing_lists_the_newest_first() -> None:
    assert TaskFilter().ordered_by == "newest"
    assert TaskFilter(q="01").ordered_by == "id"


def test_the_order_of_repeated_values_does_not_matter() -> None:
    first = TaskFilter.model_validate({"status": ["failed", "queued"], "tag": ["b", "a", "b"]})
    second = TaskFilter.model_validate({"status": ["queued", "failed"], "tag": ["a", "b"], "order": "newest"})
    assert first.identity() == second.identity()
    assert first.identity() != TaskFilter.model_validate({"status": ["failed"]}).identity()


@pytest.mark.parametrize(
    "values",
    [
        {"state": "failed"},
        {"status": ["done"]},
        {"order": "random"},
        {"q": ""},
        {"q": "a", "order": "newest"},
        {"order": "id"},
        {"tag": ["a\nb"]},
        {"tag": [""]},
        {"tag": ["x" * 101]},
        {"created_after": "2026-01-01T00:00:00"},
        {"session": ""},
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TaskFilter.model_validate(values)
