"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not leads_somewhere(page, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, in the form in which hosting sites make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_index() -> None:
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
    assert len(named) > 10  # the page was understood
    for file, names in named.items():
        defined = set(re.findall(r"^(?:async )?def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE))
        assert names <= defined, f"not in {file}: {names - defined}"
        if "/faults/" in file:
            assert defined <= names, f"in {file} and not in docs/reference/faults.md: {defined - names}"
