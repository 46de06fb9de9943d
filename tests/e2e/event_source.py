"""Streams that a page in the browser reads with the browser's own `EventSource`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.chromium import Page, browser_page, served_folder

PAGES = Path(__file__).parent / "pages"


@dataclass(frozen=True, slots=True)
class SourceLog:
    """What one `EventSource` has done; times are those of the page's clock, in seconds."""

    url: str
    messages: list[dict[str, str]]
    """The fields `id` and `data` of each event, or `event` and `data` of a marker."""
    opened: list[float]
    broken: list[float]
    """The last of them is the end if `closed`."""
    closed: bool
    """The browser does not connect again."""


class EventSources:
    """The sources of one page. A browser opens at most six to one server at the same time.

    Args:
        page: The page.
    """

    def __init__(self, page: Page) -> None:
        self._page = page

    async def open(self, *urls: str) -> None:
        """Open one source for each address, and leave it to the browser."""
        await self._page.evaluate(f"{json.dumps(urls)}.forEach(read)")

    async def have(self, count: int) -> bool:
        """Return whether each source has received so many messages."""
        return bool(await self._page.evaluate(f"logs.every((log) => log.messages.length >= {count})"))

    async def are_closed(self) -> bool:
        """Return whether the browser has given up all sources."""
        return bool(await self._page.evaluate("logs.every((log) => log.closed)"))

    async def logs(self) -> list[SourceLog]:
        """Return what each source has done, in the order in which they were opened."""
        logs: list[dict[str, Any]] = json.loads(await self._page.evaluate("JSON.stringify(logs)"))
        return [SourceLog(**log) for log in logs]


@contextmanager
def served_page() -> Iterator[str]:
    """Serve the page, and yield its origin, which a control plane must allow."""
    with served_folder(PAGES) as origin:
        yield origin


@asynccontextmanager
async def event_sources(folder: Path, origin: str) -> AsyncIterator[EventSources]:
    """Start a browser, and yield a page in it that reads streams.

    Args:
        folder: The browser's files.
        origin: Where the page is served.
    """
    async with browser_page(folder) as page:
        await page.open(f"{origin}/event_source.html")
        await page.until("typeof read === 'function'")
        yield EventSources(page)
