"""Processes are killed, paused and started again at random, and the invariants hold after each round."""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.chaos import Chaos
from tests.faults.conftest import System
from tests.figures import Tell

SHORT_SEED = 20260203
SHORT_SECONDS = 30.0
SECONDS_A_MINUTE = 60.0
MINUTES = float(os.environ.get("FAULT_MINUTES", "30"))


@pytest.mark.faults
async def test_chaos(system: System, tell: Tell) -> None:
    figures = await Chaos(system, seed=SHORT_SEED).run(seconds=SHORT_SECONDS)
    tell(f"faults, seed {SHORT_SEED}: {figures}")
    assert figures.rounds > 0


@pytest.mark.long
@pytest.mark.timeout(MINUTES * SECONDS_A_MINUTE + 600)
async def test_long_chaos(system: System, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
    """Minutes and seed come from `FAULT_MINUTES` and `FAULT_SEED`."""
    seed = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 2**31)  # noqa: S311
    with capsys.disabled():
        print(f"\nfaults for {MINUTES:g} minutes, FAULT_SEED={seed}")  # noqa: T201 - to run it again
    figures = await Chaos(system, seed=seed).run(seconds=MINUTES * SECONDS_A_MINUTE)
    tell(f"faults, seed {seed}: {figures}")
    assert figures.rounds > 0
