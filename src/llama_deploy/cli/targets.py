"""Find the workflows that a command names: `module:attribute`, `path/to/file.py:attribute`, `name=...`."""

from __future__ import annotations

import importlib
import importlib.util
import operator
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from workflows import Workflow

from llama_deploy.cli.error_messages import CommandError, ExitCode

_FORM: Final = "write module:attribute or path/to/file.py:attribute, such as app:workflow"
_SERVICE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a command line names."""

    source: str
    """A module, or a path that ends in `.py`."""
    attribute: str
    service_name: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `[name=]source:attribute`; without a name, the service is called like the attribute.

        Raises:
            CommandError: It is something else.
        """
        name, separator, place = text.rpartition("=")
        source, colon, attribute = place.rpartition(":")
        if not colon or not source or not attribute or (separator and not name):
            raise CommandError(f"{text!r} names no workflow", hint=_FORM)
        service_name = name or attribute.rpartition(".")[2].lstrip("_")
        if _SERVICE_NAME.fullmatch(service_name) is None:
            raise CommandError(
                f"no service can be called {service_name!r}",
                hint="letters, digits, `_`, `-` and `.` make a name; choose one with name=module:attribute",
            )
        return cls(source, attribute, service_name)


def load_workflows(texts: Sequence[str]) -> dict[str, Workflow]:
    """Import what the texts name and return the workflows by service name, in their order.

    The working directory can be imported from, as with `python -m`.

    Raises:
        CommandError: A text is malformed, a module or attribute is not there, or is no workflow.
    """
    targets = [Target.parse(text) for text in texts]
    names = [target.service_name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CommandError(
            f"two services are called {twice[0]!r}", hint="give one another name: name=module:attribute"
        )
    _import_from(Path.cwd())
    return {target.service_name: _load(target) for target in targets}


def _load(target: Target) -> Workflow:
    module = _import_file(target) if target.source.endswith(".py") else _import_module(target)
    try:
        value = operator.attrgetter(target.attribute)(module)
    except AttributeError as exc:
        raise CommandError(
            f"{target.source} has no attribute {target.attribute!r}", hint=_offers(module)
        ) from exc
    return _as_workflow(value, target)


def _import_module(target: Target) -> ModuleType:
    try:
        return importlib.import_module(target.source)
    except ModuleNotFoundError as exc:
        # Another missing module is the named one's own trouble.
        if exc.name is not None and f"{target.source}.".startswith(f"{exc.name}."):
            raise CommandError(
                f"there is no module {target.source!r} in {Path.cwd()} or installed",
                hint=f"change into the folder that holds it, or {_FORM}",
            ) from exc
        raise _import_failure(target, exc) from exc
    except Exception as exc:
        raise _import_failure(target, exc) from exc


def _import_file(target: Target) -> ModuleType:
    path = Path(target.source).resolve()
    if not path.is_file():
        raise CommandError(f"there is no file {target.source}", hint=_FORM)
    _import_from(path.parent)
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{target.source} is no Python file", hint=_FORM)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        del sys.modules[name]
        raise _import_failure(target, exc) from exc
    return module


def _module_name(path: Path) -> str:
    """Return under which name to import a file: its own, unless that imports something else."""
    try:
        found = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        found = None
    same = found is not None and found.origin is not None and Path(found.origin).resolve() == path
    return path.stem if same else f"llamactl_{path.stem}"


def _import_from(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_failure(target: Target, exc: Exception) -> CommandError:
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return CommandError(
        f"importing {target.source} failed: {type(exc).__name__}: {exc}{place}",
        hint="`llamactl --verbose ...` shows the whole traceback",
        exit_code=ExitCode.FAILED,
    )


def _as_workflow(value: object, target: Target) -> Workflow:
    """Return a workflow from an instance, a class or a factory."""
    place = f"{target.source}:{target.attribute}"
    if callable(value) and not isinstance(value, Workflow):
        try:
            value = value()
        except Exception as exc:
            raise CommandError(
                f"{place} cannot be called without arguments: {type(exc).__name__}: {exc}",
                hint="name an instance of a workflow, or a function without arguments that returns one",
                exit_code=ExitCode.FAILED,
            ) from exc
    if isinstance(value, Workflow):
        return value
    raise CommandError(
        f"{place} is no workflow but {type(value).__name__}",
        hint="name a Workflow, a class of one, or a function without arguments that returns one",
    )


def _offers(module: ModuleType) -> str:
    """Say which workflows a module has."""
    found = sorted(
        name
        for name, value in vars(module).items()
        if isinstance(value, Workflow)
        or (isinstance(value, type) and issubclass(value, Workflow) and value.__module__ == module.__name__)
    )
    return f"it has the workflows {', '.join(found)}" if found else "it has no workflows"
