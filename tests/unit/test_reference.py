"""Every setting has a description, and the generated pages of the reference are up to date."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

import llama_deploy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "configuration.md"


def concrete_subclasses(cls: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
    for child in cls.__subclasses__():
        if child.__module__.startswith("llama_deploy.") and not inspect.isabstract(child):
            yield child
        yield from concrete_subclasses(child)


def settings_classes() -> list[type[BaseSettings]]:
    for module in pkgutil.walk_packages(llama_deploy.__path__, "llama_deploy."):
        if module.name.endswith((".config", ".settings", ".simple")):
            importlib.import_module(module.name)
    return sorted(set(concrete_subclasses(BaseSettings)), key=lambda cls: cls.__name__)


CLASSES = settings_classes()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_field_has_a_description(cls: type[BaseSettings]) -> None:
    assert [name for name, field in cls.model_fields.items() if not field.description] == []


def test_the_reference_has_all_settings_classes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(CLASSES) >= 10
    assert [cls.__name__ for cls in CLASSES if f"## {cls.__name__}\n" not in text] == []


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ".ci/reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
