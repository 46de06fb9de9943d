"""Run the tests of durable runs with the oldest workflow library that `pyproject.toml` allows.

`make lock` pins it in `requirements/oldest.txt`. All other tests run with the pin of `requirements/run.txt`;
if both are the same, there is nothing to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOCK: Final = ROOT / "requirements" / "oldest.txt"
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


def main() -> int:
    """Install the oldest version in a folder of its own, and run the tests with it."""
    locked = version(LIBRARY)
    if f"{LIBRARY}=={locked} " in LOCK.read_text(encoding="utf-8"):
        print(f"{LIBRARY} {locked} is the oldest version that is allowed and the one that is locked")
        return 0
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--upgrade"]
    locked_only = ["--no-deps", "--require-hashes", "--only-binary=:all:", f"--requirement={LOCK}"]
    subprocess.run([*pip, *locked_only, f"--target={TARGET}"], check=True)
    print(f"with the oldest {LIBRARY} in place of {locked}:", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(TARGET)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]],
        env=environment,
        cwd=ROOT,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
