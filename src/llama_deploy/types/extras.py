"""What an installed package adds, by its entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint

from llama_deploy.errors import ConfigError


def load_entry_point(entry_point: EntryPoint, *, what: str) -> object:
    """Return what an entry point names.

    Args:
        entry_point: That of any package.
        what: What it is to be, such as `message queue`.

    Raises:
        ConfigError: It cannot be loaded: a package that it needs is not installed, or it is faulty itself.
    """
    name = f"the {what} {entry_point.name!r}"
    try:
        loaded: object = entry_point.load()
    except ImportError as exc:
        raise ConfigError(
            f"{name} needs a package that is not installed ({exc}); "
            f"install it with: pip install '{_requirement(entry_point)}'"
        ) from exc
    except Exception as exc:
        told = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise ConfigError(f"{name} cannot be loaded, because {described(entry_point)} fails: {told}") from exc
    return loaded


def described(entry_point: EntryPoint) -> str:
    """Return the entry point and its package as words, for texts that people read."""
    return f"the entry point {entry_point.value!r} of the package {_package(entry_point)!r}"


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "llama-deploy"


def _requirement(entry_point: EntryPoint) -> str:
    """Return what pip is to install: the package that declares it, with the extras that it names."""
    package = _package(entry_point)
    return f"{package}[{','.join(entry_point.extras)}]" if entry_point.extras else package
