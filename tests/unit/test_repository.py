"""What the repository promises about itself: reproducible requirements, and documents that are right."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LAYERS = {"run": ["run"], "demo": ["run", "demo"], "dev": ["run", "demo", "dev"]}
"""The locked files that are installed one after the other, and with them each environment."""
LOCKED = (*LAYERS, "lock", "oldest")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked_text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def entries(name: str) -> list[tuple[Requirement, str]]:
    """Return the requirements of a locked file, each with the text of its hashes."""
    without_comments = re.sub(r"^\s*#.*$", "", locked_text(name), flags=re.MULTILINE)
    logical_lines = re.sub(r"\\\n", " ", without_comments).splitlines()
    parts = (line.partition("--hash") for line in logical_lines if line.strip())
    return [(Requirement(requirement.strip()), rest) for requirement, _, rest in parts]


def versions(*names: str) -> dict[str, set[str]]:
    """Return the pinned versions by package; several if they depend on the Python version."""
    found: dict[str, set[str]] = {}
    for requirement, _ in (entry for name in names for entry in entries(name)):
        pins = {specifier.version for specifier in requirement.specifier}
        found.setdefault(canonicalize_name(requirement.name), set()).update(pins)
    return found


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group, those of the groups that it includes among them."""
    found: list[str] = []
    for item in pyproject()["dependency-groups"][name]:
        found += [item] if isinstance(item, str) else group(item["include-group"])
    return found


def declared(name: str) -> list[Requirement]:
    """Return what a locked file is made from."""
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    sources: dict[str, list[str]] = {
        "run": project["dependencies"],
        "demo": extras["demo"] + group("build"),
        "dev": [*itertools.chain(*extras.values()), *group("dev")],
        "lock": group("lock"),
        "oldest": [text for text in project["dependencies"] if text.startswith("llama-index-workflows")],
    }
    return [Requirement(text) for text in sources[name]]


@pytest.mark.parametrize("name", LOCKED)
def test_locked_requirements_hold_no_address(name: str) -> None:
    text = locked_text(name)
    assert "://" not in text
    assert not re.findall(r"^\s*-", text.replace("    --hash=", ""), flags=re.MULTILINE)


@pytest.mark.parametrize("name", LOCKED)
def test_every_locked_requirement_is_pinned_and_hashed(name: str) -> None:
    locked = entries(name)
    assert locked
    for requirement, hashes in locked:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert re.search(r"sha256:[0-9a-f]{64}", hashes), requirement


@pytest.mark.parametrize("name", LOCKED)
def test_locked_requirements_satisfy_what_is_declared(name: str) -> None:
    locked = versions(*LAYERS.get(name, [name]))
    for requirement in declared(name):
        if requirement.name == "llama-deploy":
            continue  # an extra that only names another one
        pins = locked[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(pin) for pin in pins), requirement


def test_the_locked_files_of_one_environment_agree() -> None:
    pins: dict[tuple[str, str], set[str]] = {}
    for requirement, _ in (entry for name in LAYERS for entry in entries(name)):
        pins.setdefault((requirement.name, str(requirement.marker)), set()).add(str(requirement.specifier))
    assert not {pin: found for pin, found in pins.items() if len(found) > 1}


def test_the_oldest_workflow_library_is_the_lower_bound() -> None:
    [bounds] = declared("oldest")
    [(pin, _)] = entries("oldest")
    assert str(pin.specifier).replace("==", ">=") in str(bounds.specifier).split(",")


def test_the_build_backend_is_locked() -> None:
    assert set(pyproject()["build-system"]["requires"]) <= set(group("build"))


def test_no_lock_file_records_addresses() -> None:
    assert not [name for name in ("uv.lock", "poetry.lock", "pdm.lock") if (ROOT / name).exists()]


def test_only_one_package_uses_what_the_workflow_library_does_not_promise() -> None:
    inner = re.compile(
        r"from workflows\.(_|runtime|plugins|decorators|context\.)"
        r"|[.\"]_(get_steps|step_config|switch_runtime|external_adapter|runtime_locked|broker_config)\b"
    )
    users = {path.parent for path in (ROOT / "src").rglob("*.py") if inner.search(path.read_text())}
    assert users == {ROOT / "src" / "llama_deploy" / "workflow_library"}


def test_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_changelog_has_a_place_for_the_next_release() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def relative_links(document: Path) -> Iterator[str]:
    prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path = target.partition("#")[0]
        if path and "://" not in path and not path.startswith("mailto:"):
            yield path


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    assert not [link for link in relative_links(document) if not (document.parent / link).exists()]


def test_every_text_installs_the_package_from_a_clone() -> None:
    """An index has another product of this name."""
    wrong = re.compile(r"(?:pipx?|uv)3? (?:install|add|download)\b.*\bllama[-_.]deploy(?![\w/-])")
    texts = [*documents(), *ROOT.glob("src/**/*.py"), *ROOT.glob("examples/**/*.py"), ROOT / "Makefile"]
    assert len(texts) > 100
    assert {str(path): found for path in texts if (found := wrong.findall(path.read_text()))} == {}


def test_every_decision_is_listed() -> None:
    index = ROOT / "docs" / "decisions" / "index.md"
    assert {path.name for path in index.parent.glob("0*.md")} <= set(relative_links(index))
