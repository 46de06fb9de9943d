"""Where the workflow objects of a service come from: one instance, or a class or function that makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from workflows import Workflow

from llama_deploy.errors import ConfigError
from llama_deploy.workflow_library import INVALID, OPTIONAL, has_steps_of_its_own, make_like, validate

AnyWorkflow: TypeAlias = Workflow | Callable[[], Workflow]
"""A workflow, a workflow class, or a function without arguments that returns a new workflow."""


@dataclass(frozen=True, slots=True)
class WorkflowFactory:
    """Makes the workflow of each run. It is a function without arguments itself.

    Attributes:
        make: The class or function.
        name: Names it in errors.
        first: What the first call returned. It describes the service, and does not run.
        has_own_steps: Whether the objects may have different steps.
    """

    make: Callable[[], Workflow]
    name: str
    first: Workflow
    has_own_steps: bool

    def __call__(self) -> Workflow:
        """Return the workflow of another run.

        Raises:
            ConfigError: The call failed, or has not returned a workflow.
        """
        return _call(self.make, self.name, like=None if self.has_own_steps else self.first)

    @classmethod
    def of(cls, given: AnyWorkflow, *, name: str | None = None) -> Workflow | WorkflowFactory:
        """Return an instance or a factory as it is; turn a class or a function into a factory, by calling it.

        The library validates the workflow, unless it was made with `disable_validation=True`.

        Args:
            given: A workflow, a workflow class, or a function without arguments that returns a workflow.
            name: Names it in errors. None: its qualified name.

        Raises:
            ConfigError: It is none of these, the call failed or has not returned a workflow, or the function
                defines another class in each call. Or the workflow is not valid; the text has the library's
                words, and where its class is.
        """
        if isinstance(given, WorkflowFactory):
            return given
        if isinstance(given, Workflow):
            _validate(given, name or _name_of(type(given)))
            return given
        name = name or _name_of(given)
        if not callable(given):
            raise ConfigError(
                f"{name} is neither a workflow nor a class or function that returns one; name a workflow "
                "class, a workflow, or a function without arguments that returns a new workflow"
            )
        first = _call(given, name)
        _validate(first, name)
        _check_class(given, name, first)
        return cls(given, name, first, has_steps_of_its_own(first))


def _check_class(make: Callable[[], object], name: str, first: Workflow) -> None:
    """Refuse a function that defines the class of its workflow, which would fail each run."""
    cls = type(first)
    if "<locals>" not in cls.__qualname__ or isinstance(make, type):
        return
    if type(_call(make, name)) is not cls:
        raise ConfigError(
            f"{name} defines the class {cls.__qualname__} anew in each call; define it in the module, or "
            "name an instance. All runs of a service need one class: another process may continue them"
        )


def _call(make: Callable[[], Any], name: str, *, like: Workflow | None = None) -> Workflow:
    try:
        made: object = make() if like is None else make_like(like, make)
    except INVALID as exc:
        raise _invalid(name, _place_of(make), exc) from exc
    except (Exception, SystemExit) as exc:
        raise ConfigError(
            f"calling {name} without arguments failed: {type(exc).__name__}: {exc}; a service calls it for "
            "each run"
        ) from exc
    if isinstance(made, Workflow):
        return made
    if inspect.iscoroutine(made):
        made.close()
        raise ConfigError(
            f"{name} returned a coroutine; the function that makes a workflow must not be `async`"
        )
    raise ConfigError(
        f"{name} returned an object of the class {type(made).__name__}, which is not a Workflow; a service "
        "needs a workflow class, or a function without arguments that returns a new workflow"
    )


def _validate(workflow: Workflow, name: str) -> None:
    try:
        validate(workflow)
    except INVALID as exc:
        raise _invalid(name, _place_of(type(workflow)), exc) from exc


def _invalid(name: str, place: str, exc: Exception) -> ConfigError:
    reason = str(exc).removesuffix(".")
    advice = ", or make it with `disable_validation=True`" if isinstance(exc, OPTIONAL) else ""
    return ConfigError(f"{name}{place} is not a valid workflow: {reason}. Change its steps{advice}")


def _place_of(made_by: object) -> str:
    """Return the file and line of a class or function, in brackets; empty if there is none."""
    try:
        code: Any = inspect.unwrap(made_by) if callable(made_by) else made_by
        return f" ({inspect.getsourcefile(code)}, line {inspect.getsourcelines(code)[1]})"
    except (TypeError, OSError):
        return ""


def _name_of(given: object) -> str:
    name = getattr(given, "__qualname__", None)
    if name is None:
        return type(given).__qualname__ if not callable(given) else repr(given)
    return f"{getattr(given, '__module__', '')}.{name}".lstrip(".")
