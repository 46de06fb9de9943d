"""What programs of 0.6 expect elsewhere: old names and modules, and advice where something is different.

`llama_deploy.compat` has the names and modules, and docs/how-to/migrate-from-0.6.md the list of differences.
"""

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


_GUIDE: Final = "docs/how-to/migrate-from-0.6.md"
_STORE: Final = "ctx.get and ctx.set"
_NESTED: Final = "add_workflows"
_OLD_MEMBERS: Final = {
    ("Context", "get"): ("use `await ctx.store.get(...)`", _STORE),
    ("Context", "set"): ("use `await ctx.store.set(...)`", _STORE),
    ("Context", "data"): ("use `ctx.store`", _STORE),
    ("Workflow", "add_workflows"): ("call the service with a client in the step", _NESTED),
    ("Workflow", "_service_manager"): ("call the service with a client in the step", _NESTED),
}
"""What the workflow library has removed, by class and attribute: what to do, and the entry in the guide."""


def see(entry: str) -> str:
    """Return the words that lead to an entry of the list of differences."""
    return f"see {entry!r} in {_GUIDE}"


def advice_on(error: BaseException) -> str | None:
    """Return what to do about an error that a program of 0.6 gets because something is different now."""
    if not isinstance(error, AttributeError):
        return None
    for cls in type(error.obj).__mro__:
        if (found := _OLD_MEMBERS.get((cls.__name__, error.name or ""))) is not None:
            action, entry = found
            return f"{action}; {see(entry)}"
    return None
