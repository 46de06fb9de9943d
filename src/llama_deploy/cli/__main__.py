"""`python -m llama_deploy.cli` is `llamactl`."""

from __future__ import annotations

from llama_deploy.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
