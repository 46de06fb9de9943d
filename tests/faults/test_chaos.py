"""Processes are killed, paused and started again at random, and the invariants hold after each round."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial

import pytest

from tests.faults.chaos import Chaos, Parts
from tests.faults.conftest import System
from tests.faults.machine_parts import MachineParts
from tests.faults.service_parts import ServiceParts
from tests.figures import Tell

SHORT_SEED = 20274076
SHORT_SECONDS = 30.0
SECONDS_A_MINUTE = 60.0
MINUTES = float(os.environ.get("FAULT_MINUTES", "10"))
SYSTEMS: dict[str, Callable[[System], Parts]] = {
    "services": ServiceParts,
    "machines": MachineParts,
    "served": partial(MachineParts, is_served=True),
}
"""Services without a supervisor; two `llamactl worker --processes 2`; `llamactl serve` instead of one."""


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("parts", ["services", "machines"])
async def test_chaos(system: System, parts: str, tell: Tell) -> None:
    figures = await Chaos(system, SYSTEMS[parts](system), seed=SHORT_SEED).run(seconds=SHORT_SECONDS)
    tell(f"faults of {parts}, seed {SHORT_SEED}: {figures}")
    assert figures.rounds > 0


@pytest.mark.long
@pytest.mark.timeout(MINUTES * SECONDS_A_MINUTE + 900)
@pytest.mark.parametrize("parts", SYSTEMS)
async def test_long_chaos(system: System, parts: str, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
    """Minutes and seed come from `FAULT_MINUTES` and `FAULT_SEED`."""
    seed = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 2**31)  # noqa: S311
    repeat = (
        f"FAULT_MINUTES={MINUTES:g} FAULT_SEED={seed} make faults ARGS='-k \"test_long_chaos and {parts}\"'"
    )
    with capsys.disabled():
        print(f"\n{MINUTES:g} minutes of faults; again with: {repeat}")  # noqa: T201 - to run it again
    chaos = Chaos(system, SYSTEMS[parts](system), seed=seed, repeat=repeat)
    figures = await chaos.run(seconds=MINUTES * SECONDS_A_MINUTE)
    tell(f"faults of {parts}, seed {seed}: {figures}")
    assert figures.rounds > 0
