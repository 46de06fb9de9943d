"""What a server says of its health: named checks, and the document that `/health/ready` answers.

It imports only the standard library, because the small process of a supervisor answers with it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

LIVE_PATH: Final = "/health/live"
"""Answers 200 while the process can answer at all."""
READY_PATH: Final = "/health/ready"
"""Answers 200 while tasks are accepted and dispatched, else 503."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check."""

    ok: bool
    reason: str = ""
    """What is wrong, and what to do, without credentials. Empty if nothing is."""


Checks = Mapping[str, Check]
"""The outcomes by the names of the checks."""
PASSED: Final = Check(ok=True)


def failed(reason: str) -> Check:
    """Return the outcome of a check that has failed for `reason`."""
    return Check(ok=False, reason=reason)


def is_healthy(checks: Checks) -> bool:
    """Whether all checks have passed."""
    return all(check.ok for check in checks.values())


def status_of(checks: Checks) -> HTTPStatus:
    """Return 200 if all checks have passed, else 503."""
    return HTTPStatus.OK if is_healthy(checks) else HTTPStatus.SERVICE_UNAVAILABLE


def document(checks: Checks) -> dict[str, Any]:
    """Return `{"status": "ok" or "failing", "checks": {name: {"ok": bool, "reason": text}}}`."""
    return {
        "status": "ok" if is_healthy(checks) else "failing",
        "checks": {name: {"ok": check.ok, "reason": check.reason} for name, check in checks.items()},
    }


def encoded(checks: Checks, *, brief: bool = False) -> bytes:
    """Return the document as JSON; with `brief`, without the checks."""
    shown = document(checks)
    return json.dumps({**shown, "checks": {}} if brief else shown).encode()


def summary(checks: Checks) -> str:
    """Return what is wrong, for a sentence: `store: the disk is full; queue: ...`."""
    return "; ".join(f"{name}: {check.reason}" for name, check in checks.items() if not check.ok)
