"""One trace over real processes, one of which is killed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.e2e.traced_example import Collector, drawn, run_example


async def test_a_trace_is_whole_although_a_process_was_killed(tmp_path: Path) -> None:
    collector = Collector()
    assert await run_example(tmp_path, collector) == "written: all about tides"
    spans = collector.spans
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)  # none is doubled
    (root,) = [span for span in spans if not span.parent_id]
    assert root.name == "user request"
    assert [span.name for span in spans if span.parent_id and span.parent_id not in by_id] == []
    sent = {"send llama_deploy.desk", "send llama_deploy.researcher"}
    counts = Counter(span.name for span in spans)
    assert {name: count for name, count in counts.items() if name not in sent} == {
        "user request": 1,
        "invoke_agent desk": 1,
        "accept desk": 1,
        "attempt desk": 1,
        "step plan": 1,
        "step ask": 1,
        "step write": 1,
        "invoke_agent researcher": 1,
        "accept researcher": 1,
        "attempt researcher": 2,
        "step find": 1,
        "step read": 1,  # that of the killed process has not ended
    }
    assert counts["send llama_deploy.desk"] >= 1
    assert counts["send llama_deploy.researcher"] >= 2

    def parent_of(name: str) -> str:
        (span,) = collector.named(name)
        return by_id[span.parent_id].name

    assert parent_of("invoke_agent desk") == "user request"
    assert parent_of("accept desk") == "invoke_agent desk"
    assert parent_of("attempt desk") == "accept desk"
    assert parent_of("step ask") == "attempt desk"
    assert parent_of("accept researcher") == "attempt desk"
    first, second = collector.named("attempt researcher")
    assert (first.process, first.attributes["llama_deploy.lost"]) == ("control plane", True)
    assert (second.process, second.attributes["llama_deploy.status"]) == ("researcher", "succeeded")
    assert [each.attributes["llama_deploy.attempt"] for each in (first, second)] == [1, 2]
    assert first.span_id in second.links
    (find,), (read,) = collector.named("step find"), collector.named("step read")
    assert (find.parent_id, read.parent_id) == (first.span_id, second.span_id)
    picture = ET.fromstring(drawn(spans))  # noqa: S314 - we have made it
    assert len(picture.findall(".//{*}rect")) >= len(spans)
