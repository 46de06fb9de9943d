"""When scarce resources count as unhealthy, and how checks are run."""

from __future__ import annotations

import asyncio

from llama_deploy.concurrency.probe import Probe
from llama_deploy.control_plane.decisions.health_rules import descriptor_problem, disk_problem
from llama_deploy.errors import UnavailableError
from llama_deploy.health import PASSED, Check, document, failed, status_of

MIB = 1024 * 1024


def problem(free: int, *, size: int = 100_000 * MIB, free_files: int | None = None) -> str | None:
    return disk_problem("/data", free=free, size=size, min_free=64 * MIB, free_files=free_files)


def test_a_disk_needs_some_room_and_a_small_one_less() -> None:
    assert problem(64 * MIB) is None
    assert problem(63 * MIB) == (
        "the disk of /data has 63.0 MiB free, and 64.0 MiB are needed; delete files there, or enlarge it"
    )
    assert problem(MIB, size=20 * MIB) is None
    assert "1.0 MiB are needed" in (problem(MIB - 1, size=20 * MIB) or "")
    assert "3 more files only" in (problem(1000 * MIB, free_files=3) or "")


def test_a_process_needs_some_file_descriptors() -> None:
    assert descriptor_problem(16, 1024) is None
    assert "15 of 1024 file descriptors" in (descriptor_problem(15, 1024) or "")
    assert descriptor_problem(4, 8) is None


def test_the_document_names_each_check() -> None:
    checks = {"store": failed("the disk is full"), "queue": PASSED}
    assert status_of(checks) == 503
    assert document(checks) == {
        "status": "failing",
        "checks": {"store": {"ok": False, "reason": "the disk is full"}, "queue": {"ok": True, "reason": ""}},
    }


async def test_many_who_ask_at_once_share_one_check() -> None:
    runs = 0

    async def check() -> None:
        nonlocal runs
        runs += 1
        raise UnavailableError("it is away")

    probe = Probe("it", check)
    assert await asyncio.gather(*(probe.outcome() for _ in range(100))) == [failed("it is away")] * 100
    assert await probe.outcome() == failed("it is away")
    assert runs == 1


async def test_a_check_that_hangs_keeps_nobody_waiting_and_is_not_begun_again() -> None:
    runs, end = 0, asyncio.Event()

    async def check() -> None:
        nonlocal runs
        runs += 1
        await end.wait()

    probe = Probe("it", check, patience=0.05)
    for _ in range(3):
        assert (await probe.outcome()).reason.startswith("it has not answered for")
    assert runs == 1
    end.set()
    async with asyncio.timeout(60):
        while await probe.outcome() != Check(ok=True):  # noqa: ASYNC110 - it waits in `outcome`
            await asyncio.sleep(0)
    await probe.close()


async def test_a_check_with_a_bug_fails_and_shows_no_secret() -> None:
    async def check() -> None:
        raise ValueError("password=secret")

    assert await Probe("it", check).outcome() == failed("ValueError in the check; see the log of the process")
