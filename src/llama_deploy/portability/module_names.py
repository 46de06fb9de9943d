"""The names of modules: the same in every process, and not the names of other modules.

A file has one name, however its program is started: as a script, where Python calls it `__main__`, with
`python -m`, or by `llamactl`. So instances that were started in different ways are instances of one program.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Final

LOADED: Final = "llamactl_"
"""The prefix of the name of a file that was loaded although another module has its name."""
_MAIN: Final = frozenset({"__main__", "__mp_main__"})
"""The names of the program: in its own process, and in those that `multiprocessing` starts."""


@dataclass(frozen=True, slots=True)
class FileModule:
    """A file as a module."""

    name: str
    """Its name, with the packages that it is in: the folders above it with an `__init__.py`."""
    root: Path
    """The folder from which it is imported under this name."""

    @property
    def package(self) -> str | None:
        """The outermost package. None: the file is in none."""
        return self.name.partition(".")[0] if "." in self.name or self.is_package else None

    @property
    def is_package(self) -> bool:
        """Whether the file is the `__init__.py` of a package."""
        return (self.root / self.name.replace(".", "/")).is_dir()


def module_of(file: Path) -> FileModule:
    """Return the module that a file is. Links are followed."""
    file = file.resolve()
    names = [] if file.stem == "__init__" else [file.stem]
    folder = file.parent
    while folder.name.isidentifier() and (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return FileModule(".".join(names) or file.stem, folder)


def stable_name(module: str) -> str:
    """Return the name of a module that it has in every process.

    Args:
        module: Its name in this process, such as `__main__`.
    """
    return _name_of_program(module) if module in _MAIN else module.removeprefix(LOADED)


@functools.cache
def _name_of_program(main: str) -> str:
    module = sys.modules.get(main)
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    if spec is not None and spec.name not in _MAIN:
        return spec.name
    file: str | None = getattr(module, "__file__", None)
    return "__main__" if file is None else module_of(Path(file)).name


@dataclass(frozen=True, slots=True)
class Namesake:
    """A file or folder that has the name of another module."""

    name: str
    found: Path
    """The file or folder."""
    meant: str
    """Where the other module is."""

    def __str__(self) -> str:
        kind = "folder" if self.found.is_dir() else "file"
        return (
            f"the {kind} {self.found} has the same name as the module `{self.name}` ({self.meant}), and only "
            f"one of them can be imported: rename the {kind}, for example to my_{self.name}, and its imports"
        )


def namesake_in(folders: Iterable[Path], name: str) -> Namesake | None:
    """Return the file or folder that a name does not lead to, because a module elsewhere has it.

    Args:
        folders: Where to look for it.
        name: The name of the module; what follows the first dot does not count.
    """
    name = name.partition(".")[0]
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = [
        Path(place).resolve() for place in (spec.origin, *(spec.submodule_search_locations or ())) if place
    ]
    for folder in folders:
        for found in (folder / f"{name}.py", folder / name):
            exists = found.is_file() or (found.is_dir() and any(found.glob("*.py")))
            if exists and not any(place.is_relative_to(found.resolve()) for place in places):
                return Namesake(name, found, spec.origin or ", ".join(map(str, places)))
    return None


def imported_namesake() -> Namesake | None:
    """Return the user's file that was imported in place of a module of the standard library."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in sys.stdlib_module_names and isinstance(file, str) and sys.path:
            found = Path(file)
            if found.parent == Path(sys.path[0]).resolve() and found.stem == name:
                return Namesake(name, found, "the standard library")
    return None
