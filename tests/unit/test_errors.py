"""The tree of errors."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator

import pytest

from llama_deploy import errors
from llama_deploy.errors import LlamaDeployError, ServiceNotFoundError, TaskFinishedError
from llama_deploy.web.problems import from_problem, status_of, to_problem


def subclasses(cls: type[LlamaDeployError]) -> Iterator[type[LlamaDeployError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from subclasses(child)


CLASSES = list(subclasses(LlamaDeployError))


def drawn() -> list[tuple[int, str, str | None, bool]]:
    """Return depth, name, built-in class and `retriable` of each line of the tree in the docstring."""
    tree = (errors.__doc__ or "").split("```")[1]
    form = re.compile(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?( \*)?")
    lines = [match for match in map(form.match, tree.strip().splitlines()) if match]
    return [(len(line[1]) // 4, line[2], line[3], bool(line[4])) for line in lines]


def test_the_docstring_draws_the_tree() -> None:
    def depth(cls: type[LlamaDeployError]) -> int:
        return len([base for base in cls.__mro__ if issubclass(base, LlamaDeployError)]) - 1

    def builtin(cls: type[LlamaDeployError]) -> str | None:
        own = [base for base in cls.__bases__ if not issubclass(base, LlamaDeployError)]
        return own[0].__name__ if own and own != [Exception] else None

    assert drawn() == [(depth(cls), cls.__name__, builtin(cls), cls.retriable) for cls in CLASSES]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_facts_build_an_equal_error(cls: type[LlamaDeployError]) -> None:
    names = [name for name in inspect.signature(cls).parameters if name != "message"]
    error = cls("what happened", **{name: f"the {name}" for name in names})
    again = cls(str(error), **error.facts())
    assert error.facts() == {name: f"the {name}" for name in names}
    assert (str(again), again.facts()) == (str(error), error.facts())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_problem_has_the_status_of_the_response_and_builds_an_equal_error(
    cls: type[LlamaDeployError],
) -> None:
    names = [name for name in inspect.signature(cls).parameters if name != "message"]
    error = cls("what happened", **{name: f"the {name}" for name in names})
    problem = to_problem(error)
    assert problem["status"] == int(status_of(error))
    assert problem["detail"] == "what happened"
    again = from_problem(problem["status"], json.dumps(problem).encode(), url="http://localhost")
    assert again.facts() == error.facts()


def test_the_status_of_a_task_in_the_problem_of_an_earlier_release_is_read() -> None:
    problem = {**to_problem(TaskFinishedError("ended", task_id="t")), "status": "failed"}
    del problem["task_status"]
    again = from_problem(409, json.dumps(problem).encode(), url="http://localhost")
    assert again.facts() == {"task_id": "t", "status": "failed"}


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ([], "there is no service 'greter'; no service is registered yet"),
        (["trip", "count"], "there is no service 'greter'; registered services: count, trip"),
        (
            ["trip", "greeter"],
            "there is no service 'greter'; did you mean 'greeter'? Registered services: greeter, trip",
        ),
        (
            [f"s{number:02}" for number in range(23)],
            "there is no service 'greter'; registered services: "
            + ", ".join(f"s{number:02}" for number in range(20))
            + " and 3 more",
        ),
    ],
)
def test_an_unknown_service_is_told_with_the_known_ones(known: list[str], text: str) -> None:
    error = ServiceNotFoundError.among(known, "greter")
    assert (str(error), error.service_name) == (text, "greter")
