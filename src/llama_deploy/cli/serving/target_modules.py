"""Imports the modules of the workflows on the command line, each under the name it has in every process."""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.portability.module_names import LOADED, FileModule, Namesake, module_of, namesake_in

FORM: Final = "use module:attribute or path/to/file.py:attribute, such as app:workflow"


def import_source(source: str, *, target: str) -> ModuleType:
    """Import a module by its name, or a file whose path ends in `.py`.

    Modules can be in the working directory, as with `python -m`. A file in a package is imported as a module
    of the package.

    Args:
        source: The module or path.
        target: What the command line says, for errors.

    Raises:
        CommandError: It does not exist, or its import failed.
    """
    return _import_file(source, target) if source.endswith(".py") else _import_module(source, target)


def import_from(folder: Path) -> None:
    """Let modules be imported from a folder, before all others."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_module(source: str, target: str) -> ModuleType:
    if (namesake := namesake_in([Path.cwd()], source)) is not None:
        hint = None
        if namesake.found.is_file() and "." not in source:
            hint = f"or name the file: {_command(target, f'./{source}.py', source)}"
        raise CommandError(str(namesake), hint=hint)
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as exc:
        # If another module is missing, the import of the named one failed.
        if exc.name is not None and f"{source}.".startswith(f"{exc.name}."):
            raise CommandError(
                f"no module {source!r} in {Path.cwd()} or in the installed packages",
                hint=f"change to the directory of the module, or {FORM}",
            ) from exc
        raise _import_failure(source, exc, folders=[Path.cwd()]) from exc
    except Exception as exc:
        raise _import_failure(source, exc, folders=[Path.cwd()]) from exc


def _import_file(source: str, target: str) -> ModuleType:
    path = Path(source).resolve()
    if not path.is_file():
        raise CommandError(f"no file {source}", hint=FORM)
    import_from(path.parent)
    place = module_of(path)
    is_in_package = place.package is not None and _leads_to(place)
    try:
        return importlib.import_module(place.name) if is_in_package else _load(path, source)
    except Exception as exc:
        hint = _relative_hint(path, source, target) if "relative import" in str(exc) else None
        folders = [path.parent, path.parent.parent, Path.cwd()]
        raise _import_failure(source, exc, folders=folders, hint=hint) from exc


def _leads_to(place: FileModule) -> bool:
    """Let a package be imported. False: another module has its name."""
    if namesake_in([place.root], place.name) is not None:
        return False
    import_from(place.root)
    return True


def _load(path: Path, source: str) -> ModuleType:
    """Load a file as a module of its own."""
    name = path.stem if namesake_in([path.parent], path.stem) is None else f"{LOADED}{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{source} is not a Python file", hint=FORM)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _relative_hint(path: Path, source: str, target: str) -> str:
    """Return what to type for a file whose imports are relative to a folder that is not a package."""
    root, package = path.parent.parent, path.parent.name
    command = _command(target, f"{package}.{path.stem}", source)
    if root != Path.cwd():
        command = f"cd {shlex.quote(str(root))} && {command}"
    return f"name it as a module of its folder: {command}"


def _command(target: str, instead: str, source: str) -> str:
    """Return the command line with another source in a target."""
    new = instead.join(target.rsplit(source, 1))
    arguments = [new if each == target else each for each in sys.argv[1:]]
    return shlex.join(["llamactl", *(arguments if new in arguments else ["serve", new])])


def _import_failure(
    source: str, exc: Exception, *, folders: list[Path], hint: str | None = None
) -> CommandError:
    if isinstance(exc, CommandError):
        return exc
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    namesake = _namesake(exc, folders)
    return CommandError(
        f"importing {source} failed: {type(exc).__name__}: {exc}{place}"
        + (f"; {namesake}" if namesake is not None else ""),
        hint=hint or "run `llamactl --verbose ...` for the traceback",
        exit_code=ExitCode.FAILED,
    )


def _namesake(exc: Exception, folders: list[Path]) -> Namesake | None:
    """Return the file or folder that an import meant, if it found another module of the same name."""
    if not isinstance(exc, ImportError) or exc.name is None:
        return None
    return namesake_in(folders, exc.name)
