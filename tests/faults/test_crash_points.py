"""A system dies at each durable write of a run, just before it and just after, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.conftest import System
from tests.faults.ledger import EXPECTED, Death, Faults, Ledger

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

EVERY = 1
FLOWS = ["chain", "human", "volatile", pytest.param("fan", marks=pytest.mark.long)]


def violations(flow: str, case: Path) -> list[str]:
    """Return what went wrong in the system of one folder."""
    outcome = case / "outcome.json"
    if not outcome.exists():
        return [f"{case.name}: it did not go on: {(case / 'log.txt').read_text()[-2000:]}"]
    found = json.loads(outcome.read_text())
    ledger = Ledger(case / "ledger.txt")
    killed = {line.pid for line in ledger.begun("kill")}
    # Its other threads may have gone on for a moment.
    deaths = [Death(pid, max(line.at for line in ledger.lines() if line.pid == pid)) for pid in killed]
    # How long an answer took stands where other lines name a step.
    answers = [(line.at - float(line.step), line.at) for line in ledger.begun("answer")]
    wrong = ledger.violations(flow, "it", Faults(deaths=deaths, answers=answers))
    if found["result"] != f"it: {EXPECTED[flow]}":
        wrong.append(f"the result is {found['result']!r}")
    one, other = found["streams"]
    if one != other:
        wrong.append("two readers have seen different streams")
    if [event["index"] for event in one] != list(range(len(one))):
        wrong.append("the stream has gaps")
    if [event["terminal"] for event in one] != [False] * (len(one) - 1) + [True]:
        wrong.append("the terminal event is not the last one, or not the only one")
    return [f"{case.name}: {each}" for each in wrong]


def die_at_every_write(system: System, flow: str, *, every: int) -> None:
    root = system.folder / "systems"
    program = system.module("whole", flow, str(root), str(every))
    assert program.wait(seconds=800) == 0, program.text
    cases = sorted(path for path in root.iterdir() if path.is_dir())
    died = [case for case in cases if "kill" in (case / "ledger.txt").read_text()]
    # Each moment has had its turn until a run ended before it came.
    assert {case.name.partition("-")[0] for case in died} == {"before", "after"}
    assert len(died) >= 4
    assert [wrong for case in cases for wrong in violations(flow, case)] == []


@pytest.mark.parametrize("flow", FLOWS)
async def test_death_at_every_write(system: System, flow: str) -> None:
    die_at_every_write(system, flow, every=EVERY)


@pytest.mark.parametrize("flow", ["fan", "collect"])
async def test_death_at_every_tenth_write_of_a_fan_out(system: System, flow: str) -> None:
    die_at_every_write(system, flow, every=10)
