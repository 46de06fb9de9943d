"""Loading of entry points, through which installed packages add backends."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Final

from llama_deploy.errors import ConfigError

_OURS: Final = "llama-deploy"


def load_entry_point(entry_point: EntryPoint, *, what: str) -> object:
    """Return the object of an entry point.

    Args:
        entry_point: An entry point of any installed package.
        what: The kind of backend, such as `message queue`.

    Raises:
        ConfigError: It cannot be loaded, because a required package is missing or its own import fails.
    """
    name = f"the {what} {entry_point.name!r}"
    try:
        loaded: object = entry_point.load()
    except ImportError as exc:
        raise ConfigError(
            f"{name} needs a package that is not installed ({exc}); {_how_to_install(entry_point)}"
        ) from exc
    except Exception as exc:
        told = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise ConfigError(f"{name} cannot be loaded, because {described(entry_point)} fails: {told}") from exc
    return loaded


def described(entry_point: EntryPoint) -> str:
    """Return a description of the entry point and its package, for messages."""
    return f"the entry point {entry_point.value!r} of the package {_package(entry_point)!r}"


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else _OURS


def _how_to_install(entry_point: EntryPoint) -> str:
    """Return the command that installs the package of the entry point with the extras that it names."""
    package = _package(entry_point)
    extras = f"[{','.join(entry_point.extras)}]" if entry_point.extras else ""
    if package == _OURS:
        return f"in your clone of llama_deploy, run: pip install '.{extras}'"
    return f"run: pip install '{package}{extras}'"
