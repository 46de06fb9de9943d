"""Names and modules of 0.6 that are elsewhere now. `llama_deploy.compat` says where; nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_OLD_MODULES: Final = Path(__file__).parent / "compat" / "old_modules"


def old_names(module: str, path: list[str] | None = None) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module or package that 0.6 had too (PEP 562).

    It costs nothing until a program asks for a name that the module does not have.

    Args:
        module: The `__name__` of the module.
        path: The `__path__` of a package, which is extended so that its old modules are found.
    """
    if path is not None:
        path.append(str(_OLD_MODULES.joinpath(*module.split(".")[1:])))

    def find(name: str) -> Any:
        sources = {} if name.startswith("_") else import_module("llama_deploy.compat.old_names").SOURCES
        source = sources.get((module, name))
        if source is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(source), name)

    return find
