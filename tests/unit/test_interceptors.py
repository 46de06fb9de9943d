"""Interceptors of installed packages, and which hooks are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llama_deploy.errors import ConfigError
from llama_deploy.interceptors import (
    ControlPlaneInterceptor,
    WorkerInterceptor,
    hooks_of,
    installed,
)

CODE = """
from llama_deploy.interceptors import WorkerInterceptor

class Audit(WorkerInterceptor):
    pass

def make():
    return Audit()

def wrong():
    return 17
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a package whose interceptors are `a` (a function) and `b` (a class); return its group."""
    module = "audit_package"
    (tmp_path / f"{module}.py").write_text(CODE, encoding="utf-8")
    metadata = tmp_path / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", "utf-8")
    groups = f"[tests.good]\nb = {module}:Audit\na = {module}:make\n[tests.bad]\nx = {module}:wrong\n"
    (metadata / "entry_points.txt").write_text(groups, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    installed.cache_clear()
    return module


def test_classes_and_functions_are_called_once(package: str) -> None:
    found = installed("tests.good", WorkerInterceptor)
    assert [type(each).__name__ for each in found] == ["Audit", "Audit"]
    assert installed("tests.good", WorkerInterceptor) is found


def test_something_else_is_refused_by_name(package: str) -> None:
    with pytest.raises(ConfigError, match=r"'x'.*does not return a WorkerInterceptor"):
        installed("tests.bad", WorkerInterceptor)
    with pytest.raises(ConfigError, match="ControlPlaneInterceptor"):
        installed("tests.good", ControlPlaneInterceptor)


def test_a_hook_that_is_not_overridden_is_not_called() -> None:
    assert hooks_of([WorkerInterceptor(), WorkerInterceptor()], WorkerInterceptor, "step") == ()
