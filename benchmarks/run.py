"""Measure llama_deploy. `docs/reference/benchmarks.md` says how to use this, and what the figures mean."""

from __future__ import annotations

import sys
from pathlib import Path

# Started as a file, so that what stands beside this folder is not found by itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
