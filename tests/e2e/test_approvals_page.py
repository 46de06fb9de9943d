"""The example of an approvals page, in a browser, served from an origin that the control plane allows."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.chromium import browser_page, served_folder
from tests.e2e.llamactl import ANY_PORTS, started

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "approvals" / "index.html"


@pytest.fixture
def origin() -> Iterator[str]:
    """The origin of the page."""
    with served_folder(PAGE.parent) as url:
        yield url


def test_the_page_is_short() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.timeout(240)
def test_a_person_answers_in_the_browser(tmp_path: Path, origin: str) -> None:
    shutil.copy(Path(__file__).parent / "programs" / "asking_app.py", tmp_path)
    allowed = {"CONTROL_PLANE_CORS_ORIGINS": json.dumps([origin])}
    with started(tmp_path, "serve", "order=asking_app:Order", *ANY_PORTS, "--json", env=allowed) as serving:
        server = json.loads(serving.line())["control_plane_url"]
        asyncio.run(_answer(tmp_path, server, origin))


async def _answer(folder: Path, server: str, origin: str) -> None:
    async with Client(server) as client, browser_page(folder) as page:
        await page.open(f"{origin}/?server={server}")
        await page.until("document.querySelector('#status')?.textContent === '0 open'")
        handle = await client.submit("order", item="tea")
        await page.until("document.querySelector('form')?.textContent.includes('tea')")
        await page.evaluate("document.querySelector('input[name=count]').value = '7'")
        await page.evaluate("document.querySelector('input[name=approved]').click()")
        await page.evaluate("document.querySelector('button').click()")
        assert await handle.result(timeout=60) == "ordered 7 tea"
        await page.until("document.querySelector('form') === null")
        # A question that somebody else has answered leaves the page, too.
        other = await client.submit("order", item="milk")
        await page.until("document.querySelector('form')?.textContent.includes('milk')")
        [question] = await eventually(other.questions, seconds=30)
        await client.inbox.answer(question.question_id, {"approved": False})
        await page.until("document.querySelector('form') === null")


@pytest.mark.timeout(240)
def test_a_page_of_another_origin_gets_nothing(tmp_path: Path, origin: str) -> None:
    shutil.copy(Path(__file__).parent / "programs" / "asking_app.py", tmp_path)
    with started(tmp_path, "serve", "order=asking_app:Order", *ANY_PORTS, "--json") as serving:
        server = json.loads(serving.line())["control_plane_url"]
        asyncio.run(_look(tmp_path, server, origin))


async def _look(folder: Path, server: str, origin: str) -> None:
    async with browser_page(folder) as page:
        await page.open(f"{origin}/?server={server}")
        await page.until("document.querySelector('#status')?.textContent.includes('Failed to fetch')")
        assert await page.evaluate("document.querySelector('form') === null")
