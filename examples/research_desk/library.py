"""The service `library`: full-text search in the docstrings of Python's standard library.

Served with `llamactl serve library:library`. The documents are read from the source files of the interpreter
that runs this, so it needs no network and no data of its own.
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

_LEFT_OUT: Final = frozenset({"antigravity", "distutils", "idlelib", "lib2to3", "this", "turtledemo"})
"""Modules of the standard library that are programs or jokes, or on their way out."""
_NAMED: Final = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SHORTEST_DOCSTRING: Final = 20
_LONGEST_PASSAGE: Final = 400


@dataclass(frozen=True, slots=True)
class Document:
    """One docstring, and where it stands."""

    source: str
    """The qualified name of what it documents, such as `asyncio.tasks.wait_for`."""
    location: str
    """File and line, such as `asyncio/tasks.py:437`."""
    text: str


def read_standard_library(modules: frozenset[str] = sys.stdlib_module_names) -> Iterator[Document]:
    """Yield the docstrings of all public modules, classes and functions. Sources are parsed, not imported."""
    for module in sorted(modules - _LEFT_OUT):
        spec = None if module.startswith("_") else PathFinder.find_spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue  # built in, or compiled: there is no source to read
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
    if text and len(text) >= _SHORTEST_DOCSTRING:
        line = 1 if isinstance(node, ast.Module) else node.lineno
        yield Document(name, f"{file.as_posix()}:{line}", text)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, _NAMED) and not child.name.startswith("_"):
                yield from _read_node(child, f"{name}.{child.name}", file)


def tokenize(text: str) -> list[str]:
    """Return the words in lower case and without endings; `WaitFor` and `wait_for` are two words each."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)
    return [re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word.lower()) for word in words]


class Index:
    """Finds documents by their words (BM25)."""

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self._ranking = bm25s.BM25()
        # A name says more about a function than any one sentence, so its words count twice.
        words = [tokenize(f"{doc.source} {doc.source} {doc.text}") for doc in documents]
        self._ranking.index(words, show_progress=False)

    def __len__(self) -> int:
        return len(self._documents)

    def search(self, query: str, top: int) -> list[tuple[Document, float]]:
        """Return at most `top` documents with their scores, the best first; none that shares no word."""
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
    """How many passages to return at most."""


class Passage(BaseModel):
    """The beginning of a docstring that matches."""

    source: str
    location: str
    text: str
    score: float


class SearchResult(StopEvent):
    """The result: passages, the best first."""

    passages: list[Passage]
    searched: int
    """How many documents there are."""


class Library(Workflow):
    """Finds passages in the docstrings of Python's standard library.

    The index is built once per process, when the first search comes.
    """

    def __init__(self) -> None:
        super().__init__(timeout=60)
        self._index: Index | None = None
        self._building = threading.Lock()

    @step
    def search(self, ev: SearchRequest) -> SearchResult:
        """Search. A step that is no coroutine runs in a thread, so even building the index blocks nobody."""
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
                    raise RuntimeError("this Python has no sources of its standard library to read")
                self._index = Index(documents)
            return self._index


def _beginning(text: str) -> str:
    """Return the first paragraphs, as many as fit into a passage."""
    if len(text) <= _LONGEST_PASSAGE:
        return text
    kept = text[:_LONGEST_PASSAGE]
    return kept.rpartition("\n\n")[0] or f"{kept.rpartition(' ')[0]} …"


library = Library()
