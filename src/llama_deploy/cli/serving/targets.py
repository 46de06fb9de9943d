"""Load the workflows on the command line: `module:attribute`, `path/to/file.py:attribute`, `name=...`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from workflows import Workflow

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.serving.target_modules import FORM, import_from, import_source
from llama_deploy.errors import ConfigError
from llama_deploy.services.run.workflow_factory import WorkflowFactory
from llama_deploy.types.services import check_service_name


@dataclass(frozen=True, slots=True)
class Target:
    """A workflow on the command line."""

    source: str
    """A module, or a path that ends in `.py`."""
    attribute: str
    service_name: str
    text: str
    """As it was typed."""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse `[name=]source:attribute`. Without a name, the service has the name of the attribute.

        Raises:
            CommandError: The text does not have this form.
        """
        name, separator, place = text.rpartition("=")
        source, colon, attribute = place.rpartition(":")
        if not colon or not source or not attribute or (separator and not name):
            raise CommandError(f"{text!r} does not name a workflow", hint=FORM)
        service_name = name or attribute.rpartition(".")[2].lstrip("_")
        try:
            check_service_name(service_name)
        except ValueError as exc:
            raise CommandError(
                f"{service_name!r} is not a valid service name: {exc}",
                hint="set the name with name=module:attribute",
            ) from exc
        return cls(source, attribute, service_name, text)


def parse_targets(texts: Sequence[str]) -> list[Target]:
    """Parse the workflows on the command line, in their order.

    Raises:
        CommandError: A text has the wrong form, or two have the same service name.
    """
    targets = [Target.parse(text) for text in texts]
    names = [target.service_name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CommandError(
            f"two services have the name {twice[0]!r}", hint="rename one of them: name=module:attribute"
        )
    return targets


def load_workflows(texts: Sequence[str]) -> dict[str, Workflow | WorkflowFactory]:
    """Import the workflows, or what makes them, and return them by service name, in the order of the texts.

    A class or a function has been called once, to find out whether it works. Modules can be in the working
    directory, as with `python -m`.

    Raises:
        CommandError: As `parse_targets`, or a text names what does not exist or is not a workflow.
    """
    targets = parse_targets(texts)
    import_from(Path.cwd())
    return {target.service_name: _load(target) for target in targets}


def _load(target: Target) -> Workflow | WorkflowFactory:
    module = import_source(target.source, target=target.text)
    try:
        value = operator.attrgetter(target.attribute)(module)
    except AttributeError as exc:
        raise CommandError(
            f"{target.source} has no attribute {target.attribute!r}", hint=_list_workflows(module)
        ) from exc
    return _as_workflow(value, target)


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
