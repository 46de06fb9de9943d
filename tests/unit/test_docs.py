"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [name for name in targets if "://" not in name and not (page.parent / name).exists()] == []


def test_every_page_is_reached_from_the_index() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text(encoding="utf-8"))
            waiting.extend(page.parent / target for target in targets)
    assert [str(page.relative_to(ROOT)) for page in PAGES if page.resolve() not in reached] == []


def test_every_fault_has_the_test_that_its_line_names() -> None:
    named: dict[str, set[str]] = {}
    file = ""
    for line in (ROOT / "docs" / "reference/faults.md").read_text(encoding="utf-8").splitlines():
        file = next(iter(re.findall(r"`(tests/\S+\.py)`", line)), file)
        if file and line.startswith("|") and not line.startswith(("| what", "|--")):
            found = re.search(r"\| `(test_\w+)` \|$", line)
            assert found, f"no test in: {line}"
            named.setdefault(file, set()).add(found[1])
    assert len(named) == 9
    for file, names in named.items():
        defined = set(re.findall(r"^(?:async )?def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE))
        assert names <= defined, f"not in {file}: {names - defined}"
        if "/faults/" in file:
            assert defined <= names, f"in {file} and not in docs/reference/faults.md: {defined - names}"
