"""The benchmarks run: a small round of each finds all its figures, and no task goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.against import LIMITS, Side, SideFailedError

ROOT = Path(__file__).resolve().parents[2]

FIGURES = {
    "floor": {"floor_p50_ms", "floor_tasks_per_second", "floor_cpu_ms"},
    "latency": {
        "session_run_p50_ms",
        "session_run_p95_ms",
        "submit_result_p50_ms",
        "submit_result_p95_ms",
        "session_run_p50_ratio",
    },
    "streaming": {"first_event_ms", "stream_seconds", "stream_faults"},
    "throughput": {
        "tasks_per_second",
        "loaded_p50_ms",
        "loaded_p95_ms",
        "cpu_ms",
        "cpu_core_ms",
        "cpu_service_ms",
        "cpu_client_ms",
        "tasks_per_second_ratio",
        "cpu_above_floor_ms",
    },
    "concurrent": {"concurrent_seconds", "concurrent_errors"},
    "idle": {
        "idle_cpu_percent",
        "idle_core_mib",
        "idle_service_mib",
        "idle_single_cpu_percent",
        "idle_single_mib",
    },
    "sharing": {"least_share_percent"},
    "durability": {
        "echo_by_step_p50_ms",
        "echo_by_task_p50_ms",
        "chain_by_step_p50_ms",
        "chain_by_task_p50_ms",
        "step_ms",
    },
    "takeover": {"takeover_seconds", "takeover_ended_seconds"},
}

COMPARED = {
    "session_run_p50_ms",
    "session_run_p95_ms",
    "tasks_per_second",
    "cpu_ms",
    "cpu_servers_ms",
    "events_per_second",
    "queue_away_seconds",
    "errands_seconds",
}
"""The figures of the table of queues and stores."""


def run(*arguments: str, json_to: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "run.py", *arguments, f"--json={json_to}"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_quick_run_finds_every_figure_and_no_task_goes_wrong(tmp_path: Path) -> None:
    path = tmp_path / "results" / "figures.json"
    done = run("--quick", json_to=path)
    # 1: a goal was missed, as figures of a small round on a loaded machine may.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["tasks"]["failures"] == []
    assert report["tasks"]["succeeded"] > 500
    assert set(report["figures"]) == set().union(*FIGURES.values())
    assert all(figure["value"] >= 0 for figure in report["figures"].values())
    assert report["figures"]["stream_faults"]["value"] == 0
    assert report["figures"]["concurrent_errors"]["value"] == 0
    assert report["passed"] is (done.returncode == 0)
    assert "session.run: p50" in done.stdout


def test_a_queue_is_compared_and_its_tasks_outlive_an_instance_and_the_queue(tmp_path: Path) -> None:
    path = tmp_path / "backends.json"
    done = run("--broker=nats", "--store=sqlite", "--quick", json_to=path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    [row] = report["rows"]
    if row["missing"]:
        pytest.skip(row["missing"])
    assert (row["queue"], row["store"], row["passed"]) == ("nats", "sqlite", True)
    assert row["tasks"]["failures"] == []
    assert set(row["figures"]) >= COMPARED
    assert all(row["figures"][name] > 0 for name in COMPARED - {"cpu_servers_ms"})
    assert row["figures"]["errands_right"] == row["figures"]["errands"] == 24
    assert row["figures"]["stream_faults"] == 0
    assert "24/24" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--broker=none"], "'none' is none of: all, simple"),
        (["--broker=nats", "--store=none"], "'none' is none of: all, sqlite"),
        (["--store=sqlite"], "--store goes with --broker"),
        (["--broker=nats", "--long"], "do not go with --broker"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], reason: str, tmp_path: Path) -> None:
    done = run(*arguments, json_to=tmp_path / "none.json")
    assert done.returncode == 2
    assert reason in done.stderr


def test_one_side_of_a_comparison_of_revisions_finds_every_figure() -> None:
    side = Side(ROOT, quick=True)
    try:
        side.wait_until_ready()
        side.measure()
    finally:
        side.stop()
    assert side.failures == []
    assert set(side.figures()) == {limit.figure for limit in LIMITS}


def test_a_side_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    package = tmp_path / "src" / "llama_deploy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    side = Side(tmp_path, quick=True)
    try:
        with pytest.raises(SideFailedError, match=str(tmp_path)):
            side.wait_until_ready()
    finally:
        side.stop()


def test_a_small_fan_out_is_compared_with_the_library_alone(tmp_path: Path) -> None:
    path = tmp_path / "fan_out.json"
    arguments = ("--form=listed", "--form=chain", "--sizes=20", "--rounds=1", f"--json={path}")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fan_out", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # 1: so small a run may take longer than the limit for large ones.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    runs = json.loads(path.read_text())["runs"]
    assert [(each["form"], each["size"]) for each in runs] == [("listed", 20), ("chain", 20)]
    assert all(set(each["wall_seconds"]) == {"bare", "auto", "step"} for each in runs)
