"""Load the workflows on the command line: `module:attribute`, `path/to/file.py:attribute`, `name=...`."""

from __future__ import annotations

import importlib
import importlib.util
import operator
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from workflows import Workflow

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.errors import ConfigError
from llama_deploy.services.run.workflow_factory import WorkflowFactory
from llama_deploy.types.services import check_service_name

_FORM: Final = "use module:attribute or path/to/file.py:attribute, such as app:workflow"


@dataclass(frozen=True, slots=True)
class Target:
    """A workflow on the command line."""

    source: str
    """A module, or a path that ends in `.py`."""
    attribute: str
    service_name: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse `[name=]source:attribute`. Without a name, the service has the name of the attribute.

        Raises:
            CommandError: The text does not have this form.
        """
        name, separator, place = text.rpartition("=")
        source, colon, attribute = place.rpartition(":")
        if not colon or not source or not attribute or (separator and not name):
            raise CommandError(f"{text!r} does not name a workflow", hint=_FORM)
        service_name = name or attribute.rpartition(".")[2].lstrip("_")
        try:
            check_service_name(service_name)
        except ValueError as exc:
            raise CommandError(
                f"{service_name!r} is not a valid service name: {exc}",
                hint="set the name with name=module:attribute",
            ) from exc
        return cls(source, attribute, service_name)


def load_workflows(texts: Sequence[str]) -> dict[str, Workflow | WorkflowFactory]:
    """Import the workflows, or what makes them, and return them by service name, in the order of the texts.

    A class or a function has been called once, to find out whether it works. Modules can be in the working
    directory, as with `python -m`.

    Raises:
        CommandError: A text has the wrong form, or names something that does not exist or is not a workflow.
    """
    targets = [Target.parse(text) for text in texts]
    names = [target.service_name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CommandError(
            f"two services have the name {twice[0]!r}", hint="rename one of them: name=module:attribute"
        )
    _import_from(Path.cwd())
    return {target.service_name: _load(target) for target in targets}


def _load(target: Target) -> Workflow | WorkflowFactory:
    module = _import_file(target) if target.source.endswith(".py") else _import_module(target)
    try:
        value = operator.attrgetter(target.attribute)(module)
    except AttributeError as exc:
        raise CommandError(
            f"{target.source} has no attribute {target.attribute!r}", hint=_list_workflows(module)
        ) from exc
    return _as_workflow(value, target)


def _import_module(target: Target) -> ModuleType:
    try:
        return importlib.import_module(target.source)
    except ModuleNotFoundError as exc:
        # If another module is missing, the import of the named one failed.
        if exc.name is not None and f"{target.source}.".startswith(f"{exc.name}."):
            raise CommandError(
                f"no module {target.source!r} in {Path.cwd()} or in the installed packages",
                hint=f"change to the directory of the module, or {_FORM}",
            ) from exc
        raise _import_failure(target, exc) from exc
    except Exception as exc:
        raise _import_failure(target, exc) from exc


def _import_file(target: Target) -> ModuleType:
    path = Path(target.source).resolve()
    if not path.is_file():
        raise CommandError(f"no file {target.source}", hint=_FORM)
    _import_from(path.parent)
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{target.source} is not a Python file", hint=_FORM)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        del sys.modules[name]
        raise _import_failure(target, exc) from exc
    return module


def _module_name(path: Path) -> str:
    """Return the module name for a file: its own name, unless another module has it."""
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
        hint="run `llamactl --verbose ...` for the traceback",
        exit_code=ExitCode.FAILED,
    )


def _as_workflow(value: object, target: Target) -> Workflow | WorkflowFactory:
    """Return a workflow instance as it is; turn a class or a function into a factory, by calling it once."""
    place = f"{target.source}:{target.attribute}"
    if not isinstance(value, Workflow) and not callable(value):
        raise CommandError(
            f"{place} is not a workflow but {type(value).__name__}",
            hint="name a workflow class, a function without arguments that returns a new workflow, or a "
            "workflow instance",
        )
    try:
        return WorkflowFactory.of(value, name=place)
    except ConfigError as exc:
        raise CommandError(
            str(exc),
            hint="name a class or a function that returns a new workflow when it is called without arguments",
            exit_code=ExitCode.FAILED,
        ) from exc


def _list_workflows(module: ModuleType) -> str:
    """Return a sentence that lists the workflows of a module."""
    found = sorted(
        name
        for name, value in vars(module).items()
        if isinstance(value, Workflow)
        or (isinstance(value, type) and issubclass(value, Workflow) and value.__module__ == module.__name__)
    )
    return f"its workflows are: {', '.join(found)}" if found else "it does not contain workflows"
