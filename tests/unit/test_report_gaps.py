"""Missing reports count as lost after a while, and only those of the attempt that misses them."""

from __future__ import annotations

from typing import Any

import pytest

from llama_deploy.control_plane.requests.attempts.report_gaps import ReportGaps
from llama_deploy.errors import EventsMissingError
from llama_deploy.messages import QueueMessage

REPORT = QueueMessage(data={"task_id": "t", "attempt": 1})


@pytest.mark.parametrize(
    "data", [{"task_id": [1], "attempt": 1}, {"task_id": "t", "attempt": {}}, {"task_id": "t"}, {}]
)
def test_a_malformed_report_leaves_gaps_open(data: dict[str, Any]) -> None:
    gaps = ReportGaps(lost_after=0)
    gaps.is_lost(REPORT, EventsMissingError(expected=0))
    gaps.close(QueueMessage(data=data))
    assert gaps.is_lost(REPORT, EventsMissingError(expected=0))


def test_a_gap_that_was_closed_opens_again_later() -> None:
    gaps = ReportGaps(lost_after=3600)
    gaps.is_lost(REPORT, EventsMissingError(expected=0))
    gaps.close(REPORT)
    assert not gaps.is_lost(REPORT, EventsMissingError(expected=0))
