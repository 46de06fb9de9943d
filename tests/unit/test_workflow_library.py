"""The workflow library that is installed: is it one that works?"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from llama_deploy.errors import ConfigError
from llama_deploy.workflow_library.versions import NEWEST_TESTED, OLDEST_TESTED, PACKAGE, private

ROOT = Path(__file__).parents[2]


def imported(tmp_path: Path, *, version: str = NEWEST_TESTED, before: str = "") -> str:
    """Import the package in another process, with a fake version, and return what that writes to stderr."""
    information = tmp_path / f"llama_index_workflows-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{before}\nimport llama_deploy.workflow_library"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + "\nimport llama_deploy.services"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert bool(done.returncode) is ("Error" in done.stderr), done.stderr
    return done.stderr


@pytest.mark.parametrize("version", [OLDEST_TESTED, NEWEST_TESTED, f"{NEWEST_TESTED}rc1"])
def test_a_tested_version_is_imported_without_a_word(tmp_path: Path, version: str) -> None:
    assert imported(tmp_path, version=version) == ""


@pytest.mark.parametrize("version", ["2.99.0", f"{NEWEST_TESTED}.1", "3.0.0rc1"])
def test_a_newer_version_gives_one_warning(tmp_path: Path, version: str) -> None:
    text = imported(tmp_path, version=version)
    assert text.count("UntestedLibraryWarning") == 1
    assert f"{PACKAGE} {version} is installed" in text
    assert f"tested with {OLDEST_TESTED} to {NEWEST_TESTED}" in text


def test_a_missing_name_is_named_with_the_version_and_the_tested_ones(tmp_path: Path) -> None:
    before = "import workflows.runtime.types.plugin as plugin; del plugin.WaitForNextTaskResult"
    text = imported(tmp_path, version="2.99.0", before=before)
    last = text.strip().splitlines()[-1]
    assert last.startswith("llama_deploy.errors.ConfigError: llama_deploy does not work with")
    assert f"{PACKAGE} 2.99.0: cannot import name 'WaitForNextTaskResult'" in last
    assert f"{OLDEST_TESTED} to {NEWEST_TESTED}" in last


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    text = imported(tmp_path, before="sys.modules['workflows._event_matching'] = None")
    assert "ConfigError: llama_deploy does not work with" in text
    assert "workflows._event_matching" in text.strip().splitlines()[-1]


def test_a_missing_attribute_is_named_at_import(tmp_path: Path) -> None:
    text = imported(tmp_path, before="from workflows import Workflow; del Workflow._switch_runtime")
    assert "Workflow does not have '_switch_runtime'" in text.strip().splitlines()[-1]


def test_a_missing_attribute_of_an_object_is_named() -> None:
    with pytest.raises(ConfigError, match=r"object does not have '_timeout'.*Install a tested version"):
        private(object(), "_timeout")


def test_the_tested_versions_are_the_oldest_allowed_and_the_locked_one() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [allowed] = [each for each in map(Requirement, dependencies) if each.name == PACKAGE]
    assert f">={OLDEST_TESTED}" in str(allowed.specifier).split(",")
    assert f"{PACKAGE}=={NEWEST_TESTED} " in (ROOT / "requirements" / "run.txt").read_text()
