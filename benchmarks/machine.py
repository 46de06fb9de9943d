"""The machine on which is measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import psutil


def describe_machine(*, quick: bool) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "llama_deploy": version("llama-deploy"),
        "workflows": version("llama-index-workflows"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_before": round(psutil.getloadavg()[0], 2),
        "quick": quick,
    }
