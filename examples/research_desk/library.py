"""The service `library`: full-text search in the docstrings of Python's standard library.

Serve it with `llamactl serve library:library`. It reads the documents from the source files of its own Python
interpreter, so it works offline and needs no other data.
"""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

import bm25s
from pydantic import BaseModel, Field
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

_EXCLUDED: Final = frozenset({"antigravity", "distutils", "idlelib", "lib2to3", "this", "turtledemo"})
"""Modules of the standard library that are programs or jokes, or deprecated."""
_NAMED: Final = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_MIN_DOCSTRING_LENGTH: Final = 20
_MAX_PASSAGE_LENGTH: Final = 400


@dataclass(frozen=True, slots=True)
class Document:
    """One docstring and its location."""

    source: str
    """The qualified name of the documented object, such as `asyncio.tasks.wait_for`."""
    location: str
    """File and line, such as `asyncio/tasks.py:437`."""
    text: str


def read_standard_library(modules: frozenset[str] = sys.stdlib_module_names) -> Iterator[Document]:
    """Yield the docstrings of all public modules, classes and functions. Sources are parsed, not imported."""
    for module in sorted(modules - _EXCLUDED):
        spec = None if module.startswith("_") else PathFinder.find_spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue  # built in or compiled, so without a source
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
        base = origin.parent.parent if spec.submodule_search_locations else origin.parent
        for file in files:
            yield from _read_file(file, base)


def _read_file(file: Path, base: Path) -> Iterator[Document]:
    relative = file.relative_to(base)
    parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
    if any(part.startswith("_") or part in ("test", "tests") for part in parts):
        return
    tree = ast.parse(file.read_bytes())
    yield from _read_node(tree, ".".join(parts), relative)


def _read_node(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, file: Path
) -> Iterator[Document]:
    text = ast.get_docstring(node)
    if text and len(text) >= _MIN_DOCSTRING_LENGTH:
        line = 1 if isinstance(node, ast.Module) else node.lineno
        yield Document(name, f"{file.as_posix()}:{line}", text)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, _NAMED) and not child.name.startswith("_"):
                yield from _read_node(child, f"{name}.{child.name}", file)


def tokenize(text: str) -> list[str]:
    """Return the words in lower case, without endings; `WaitFor` and `wait_for` are two words each."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)
    return [re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word.lower()) for word in words]


class Index:
    """Finds documents by their words (BM25)."""

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self._ranking = bm25s.BM25()
        # The name of a function is more specific than a sentence, so its words count twice.
        words = [tokenize(f"{doc.source} {doc.source} {doc.text}") for doc in documents]
        self._ranking.index(words, show_progress=False)

    def __len__(self) -> int:
        return len(self._documents)

    def search(self, query: str, top: int) -> list[tuple[Document, float]]:
        """Return at most `top` documents with their scores, best first. Each shares a word with the query."""
        tokens = tokenize(query)
        if not tokens:
            return []
        k = min(top, len(self._documents))
        rows, scores = self._ranking.retrieve([tokens], k=k, show_progress=False)
        found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [(self._documents[row], score) for row, score in found if score > 0]


class SearchRequest(StartEvent):
    """The run arguments."""

    query: str = Field(min_length=1)
    top: int = Field(default=3, ge=1, le=50)
    """The maximum number of passages to return."""


class Passage(BaseModel):
    """The beginning of a matching docstring."""

    source: str
    location: str
    text: str
    score: float


class SearchResult(StopEvent):
    """The result: passages, best first."""

    passages: list[Passage]
    searched: int
    """The number of documents in the index."""


class Library(Workflow):
    """Finds passages in the docstrings of Python's standard library.

    The index is built once per process, at the first search.
    """

    def __init__(self) -> None:
        super().__init__(timeout=60)
        self._index: Index | None = None
        self._building = threading.Lock()

    @step
    def search(self, ev: SearchRequest) -> SearchResult:
        """Search. A synchronous step runs in a thread, so building the index does not block other tasks."""
        index = self._built_index()
        passages = [
            Passage(
                source=doc.source, location=doc.location, text=_beginning(doc.text), score=round(score, 2)
            )
            for doc, score in index.search(ev.query, ev.top)
        ]
        return SearchResult(passages=passages, searched=len(index))

    def _built_index(self) -> Index:
        with self._building:
            if self._index is None:
                documents = list(read_standard_library())
                if not documents:
                    raise RuntimeError(
                        f"{sys.executable} does not include the sources of the standard library"
                    )
                self._index = Index(documents)
            return self._index


def _beginning(text: str) -> str:
    """Return as many paragraphs from the start as fit into a passage."""
    if len(text) <= _MAX_PASSAGE_LENGTH:
        return text
    kept = text[:_MAX_PASSAGE_LENGTH]
    return kept.rpartition("\n\n")[0] or f"{kept.rpartition(' ')[0]} …"


library = Library()
