"""What has to be installed for an entry point whose module cannot be imported."""

from __future__ import annotations

from importlib.metadata import EntryPoint


def requirement(entry_point: EntryPoint) -> str:
    """Return what pip is to install: the package that declares it, with the extras that it names."""
    package = entry_point.dist.name if entry_point.dist is not None else "llama-deploy"
    return f"{package}[{','.join(entry_point.extras)}]" if entry_point.extras else package
