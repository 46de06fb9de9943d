"""`python -m llama_deploy.cli` is `llamactl`."""

from __future__ import annotations

import sys
from pathlib import Path

from llama_deploy.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    if sys.path and Path(sys.path[0]).resolve() == Path.cwd():
        # As in `llamactl`: what the command itself imports is not found in the working directory.
        del sys.path[0]
    main()
