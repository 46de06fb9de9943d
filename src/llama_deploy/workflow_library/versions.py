"""Which versions of the workflow library work, and what to say about one that does not."""

from __future__ import annotations

import re
import sys
import warnings
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from llama_deploy.errors import ConfigError
from llama_deploy.portability.module_names import Namesake

PACKAGE: Final = "llama-index-workflows"
OLDEST_TESTED: Final = "2.26.1"
NEWEST_TESTED: Final = "2.26.1"
TESTED: Final = f"{OLDEST_TESTED} to {NEWEST_TESTED}"


class UntestedLibraryWarning(UserWarning):
    """The installed workflow library is newer than the versions that this release was tested with."""


def check_namesake() -> None:
    """Check that the name of the library leads to it.

    Raises:
        ConfigError: A file or folder of the user has its name.
    """
    package = "workflows"
    spec = find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
    meant = Path(str(distribution(PACKAGE).locate_file(package)))
    if spec is None or not meant.is_dir():
        return  # an editable installation is elsewhere
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    if any(Path(place).resolve().is_relative_to(meant.resolve()) for place in places if place):
        return
    found = Path(spec.origin or places[-1] or package)
    found = found.parent if found.stem == "__init__" else found
    raise ConfigError(str(Namesake(package, found, f"{PACKAGE}, in {meant}")))


def library_version() -> str:
    """Return the version of the installed workflow library."""
    return version(PACKAGE)


def warn_if_untested() -> None:
    """Warn if the installed workflow library is newer than the newest tested version."""
    installed = library_version()
    if _release(installed) > _release(NEWEST_TESTED):
        warnings.warn(
            f"{PACKAGE} {installed} is installed, but this release of llama_deploy was tested with {TESTED}. "
            f"If workflows misbehave, install {PACKAGE}=={NEWEST_TESTED}",
            UntestedLibraryWarning,
            stacklevel=3,
        )


def unsupported(missing: str) -> ConfigError:
    """Return the error for a workflow library that lacks something.

    Args:
        missing: What is missing: a name, or the text of an `ImportError`.
    """
    return ConfigError(
        f"llama_deploy does not work with {PACKAGE} {library_version()}: {missing}. "
        f"Install a tested version ({TESTED}), for example {PACKAGE}=={NEWEST_TESTED}"
    )


def private(owner: Any, name: str) -> Any:
    """Return a private attribute of the workflow library.

    Raises:
        ConfigError: The installed version does not have it.
    """
    try:
        return getattr(owner, name)
    except AttributeError as exc:
        cls = owner if isinstance(owner, type) else type(owner)
        raise unsupported(f"{cls.__module__}.{cls.__qualname__} does not have {name!r}") from exc


def _release(text: str) -> tuple[int, ...]:
    """Return the numbers with which a version begins; suffixes such as `rc1` do not count."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
