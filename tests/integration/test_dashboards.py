"""The dashboard and the alerts in `deploy/` ask for metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from llama_deploy.interceptors import AttemptCall, StepCall
from llama_deploy.services.worker.worker_metrics import WorkerLoad, WorkerMetrics
from tests.integration.in_process import running_stack

DEPLOY = Path(__file__).parents[2] / "deploy"
PAGE = DEPLOY.parent / "docs" / "operate" / "metrics.md"
OF_SCRAPES = {"job", "instance", "process"}
"""Labels that Prometheus, or a supervisor, adds."""


def expressions() -> Iterator[str]:
    board = json.loads((DEPLOY / "grafana" / "llama_deploy.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m")
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            yield rule["expr"]


async def families(folder: Path) -> dict[str, set[str]]:
    """Return the labels of each sample of a control plane and a worker that have done a little."""
    worker = WorkerMetrics("echo")
    with worker.attempt(AttemptCall(task=None, headers={})):  # type: ignore[arg-type]  # it is not looked at
        with worker.step(StepCall(None, "act")):
            pass
        with pytest.raises(RuntimeError), worker.step(StepCall(None, "act")):
            raise RuntimeError
    async with running_stack(store_uri=f"sqlite:///{folder}/store.db") as stack:
        text = await stack.plane.metrics.text()
    text += worker.text(WorkerLoad(1, 1, 1, 1, 1, 0.0, 0.0))
    found: defaultdict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        names = {
            "counter": [f"{family.name}_total"],
            "histogram": [f"{family.name}_{each}" for each in ("bucket", "sum", "count")],
        }.get(family.type, [family.name])
        for name in names:
            found[name] |= LABELS.get(family.name, set())
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return dict(found)


BY_SERVICE = (
    *("attempts", "attempts_lost", "charges", "broker_errors", "stranded_tasks", "suspects"),
    *("slots", "slots_used", "instances", "oldest_queued_seconds"),
)
TIMES = ("submit_seconds", "queue_seconds", "run_seconds", "task_seconds", "broker_publish_seconds")
LABELS = {f"llama_deploy_{name}": {"service"} for name in BY_SERVICE} | {
    **{f"llama_deploy_{name}": {"service", "le"} for name in TIMES},
    "llama_deploy_tasks": {"service", "status"},
    "llama_deploy_tasks_ended": {"service", "status"},
    "llama_deploy_report_seconds": {"action", "le"},
}
"""Those of metrics that have no samples before a task has ended; the tests of metrics find them."""


async def test_every_expression_names_metrics_and_labels_that_exist(tmp_path: Path) -> None:
    known = await families(tmp_path)
    asked = list(expressions())
    assert len(asked) > 25
    for expression in asked:
        names = re.findall(r"\b(llama_deploy_\w+)", expression)
        assert names or "process_resident_memory_bytes" in expression, expression
        assert [name for name in names if name not in known] == [], expression
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression))
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            labels |= {each.strip() for each in group.split(",")}
        has = set().union(*(known[name] for name in names)) | OF_SCRAPES
        assert labels <= has, (expression, labels - has)


async def test_the_page_lists_every_metric(tmp_path: Path) -> None:
    listed = set(re.findall(r"`(llama_deploy_\w+)`", PAGE.read_text()))
    known = {re.sub(r"_(bucket|sum|count)$", "", name) for name in await families(tmp_path)}
    known = {name for name in known if not name.endswith("_created")}
    assert known - listed == set()
    assert listed - known - {"llama_deploy_process_answers"} == set()
