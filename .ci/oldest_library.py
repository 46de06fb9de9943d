"""Run the tests of durable runs with the oldest workflow library that `pyproject.toml` allows.

All other tests run with the newest one that is locked; if both are the same there is nothing to do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
TARGET: Final = ROOT / "build" / "oldest_library"
LIBRARY: Final = "llama-index-workflows"
TESTS: Final = (
    "tests/unit/codec",
    "tests/unit/test_service_inbox.py",
    "tests/unit/test_service_runs.py",
    "tests/integration/test_agents.py",
    "tests/integration/test_durable_runs.py",
    "tests/integration/test_odd_runs.py",
    "tests/integration/test_workflow_service.py",
)


def oldest() -> str:
    """Return the lower bound of the library's versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [found] = [
        match[1] for each in project["dependencies"] if (match := re.match(rf"{LIBRARY}>=([\w.]+)", each))
    ]
    return found


def main() -> int:
    """Install the oldest version beside the locked one, and run the tests with it."""
    wanted, locked = oldest(), version(LIBRARY)
    if wanted == locked:
        print(f"{LIBRARY} {wanted} is the oldest version that is allowed and the newest that is locked")
        return 0
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--upgrade", f"--target={TARGET}", f"{LIBRARY}=={wanted}"], check=True)
    print(f"with {LIBRARY} {wanted} in place of {locked}:", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(TARGET)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]],
        env=environment,
        cwd=ROOT,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
