"""The research desk: its parts by themselves, and the whole demo as a user runs it."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

DESK = Path(__file__).parents[2] / "examples" / "research_desk"
DEMO_SECONDS = 100.0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DESK))
    return importlib.import_module("library")


@pytest.fixture
def researcher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DESK))
    return importlib.import_module("researcher")


@pytest.fixture
def index(library: ModuleType) -> Any:
    return library.Index(list(library.read_standard_library(frozenset({"asyncio", "json", "zipfile"}))))


class TestDocuments:
    def test_there_are_thousands(self, library: ModuleType) -> None:
        documents = list(library.read_standard_library())

        assert len(documents) > 3000
        assert len({document.source.partition(".")[0] for document in documents}) > 100

    def test_each_has_its_name_and_its_place(self, library: ModuleType) -> None:
        documents = {doc.source: doc for doc in library.read_standard_library(frozenset({"json"}))}

        dumps = documents["json.dumps"]
        assert dumps.text.startswith("Serialize ``obj`` to a JSON formatted ``str``")
        file, line = dumps.location.split(":")
        assert file == "json/__init__.py"
        source = (Path(os.__file__).parent / file).read_text(encoding="utf-8").splitlines()
        assert source[int(line) - 1].startswith("def dumps(")
        assert documents["json"].location == "json/__init__.py:1"

    def test_what_is_private_is_left_out(self, library: ModuleType) -> None:
        names = [doc.source for doc in library.read_standard_library(frozenset({"asyncio", "_pyio"}))]

        assert names
        assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]

    def test_nothing_is_imported(self, library: ModuleType) -> None:
        assert "turtle" not in sys.modules
        assert list(library.read_standard_library(frozenset({"turtle"})))
        assert "turtle" not in sys.modules


class TestIndex:
    def test_the_best_passage_is_first(self, index: Any) -> None:
        found = index.search("wait for a coroutine with a timeout", 3)

        assert len(found) == 3
        assert found[0][0].source == "asyncio.tasks.wait_for"
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)

    def test_names_are_words(self, library: ModuleType) -> None:
        assert library.tokenize("asyncio.wait_for ZipFile HTTPServer") == [
            *("asyncio", "wait", "for", "zip", "fil", "http", "server"),
        ]
        assert library.tokenize("starting, started, starts") == ["start"] * 3

    @pytest.mark.parametrize("query", ["xyzzy", "?!"])
    def test_a_query_without_a_known_word_finds_nothing(self, index: Any, query: str) -> None:
        assert index.search(query, 3) == []

    def test_more_than_there_is_can_be_asked_for(self, index: Any) -> None:
        assert len(index.search("json", 1_000_000)) <= len(index)

    async def test_searches_that_come_at_the_same_time_share_one_index(self, library: ModuleType) -> None:
        workflow = library.Library()

        results = await asyncio.gather(*(workflow.run(query="zip archive", top=2) for _ in range(4)))

        assert {result.searched for result in results} == {len(list(library.read_standard_library()))}
        assert all(len(result.passages) == 2 for result in results)


class TestQuestions:
    @pytest.mark.parametrize(
        ("question", "topics"),
        [
            ("How do I wait for a coroutine with a timeout?", ["wait", "coroutine", "timeout"]),
            ("And how do I cancel it?", ["cancel"]),
            ("Copy a directory tree, and pack zip archives", ["copy", "directory tree", "pack zip archives"]),
            ("Threads, threads!", ["threads"]),
            ("What is it?", []),
        ],
    )
    def test_topics_are_the_words_between(
        self, researcher: ModuleType, question: str, topics: list[str]
    ) -> None:
        assert researcher.find_topics(question) == topics

    @pytest.mark.parametrize(
        ("question", "back"),
        [
            ("And how do I cancel it?", True),
            ("Do these raise?", True),
            ("How do I cancel a task?", False),
            ("How do I open a file, read its lines, count words, and then close it?", False),
        ],
    )
    def test_a_follow_up_says_little_by_itself(
        self, researcher: ModuleType, question: str, *, back: bool
    ) -> None:
        assert researcher.refers_back(question) is back

    def test_searches_pair_topics(self, researcher: ModuleType) -> None:
        assert researcher.plan_searches(["a", "b", "c"], []) == ["a b c", "a b", "b c"]
        assert researcher.plan_searches(["a"], []) == ["a"]
        assert researcher.plan_searches(["a"], ["x", "y"]) == ["a x y", "a x", "a y"]

    def test_what_many_searches_find_is_best(self, researcher: ModuleType) -> None:
        def passage(source: str, score: float = 0.0) -> Any:
            return researcher.Passage(source=source, location="x.py:1", text="", score=score)

        found = researcher.rank(
            [passage("early", 0.4)],
            [[passage("top"), passage("both")], [passage("both"), passage("early")]],
            weight=0.5,
        )

        assert [(one.source, one.score) for one in found] == [("both", 0.75), ("early", 0.65), ("top", 0.5)]


def run_demo(script: Path) -> tuple[int, str]:
    """Run the demo in a session of its own; what it leaves behind is killed."""
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEMO_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output


@pytest.mark.faults
def test_the_demo_shows_a_conversation_and_a_takeover() -> None:
    code, output = run_demo(DESK / "demo.py")

    assert code == 0, output
    assert "asyncio.tasks.wait_for" in output
    assert "about cancel; builds on wait, coroutine, timeout, asyncio" in output
    killed = re.search(r"kill -9 (\d+), the process that runs this question", output)
    takeover = re.search(r"process (\d+) took over its task after (\d+\.\d) s and answered", output)
    assert killed is not None, output
    assert takeover is not None, output
    assert takeover[1] != killed[1]
    assert float(takeover[2]) < 7.0 + 3.0, "the lease, two seconds, and a slow machine"
    assert "in attempt 2" in output
    assert "another instance continues with round 2" in output
    assert "round 6: 2 searches" in output
    assert "pip install '.[demo]'" in output
    assert "all processes are stopped" in output
    started = re.search(r"process (\d+), .*processes (\d+) and (\d+)", output, re.DOTALL)
    assert started is not None, output
    assert not [pid for pid in started.groups() if psutil.pid_exists(int(pid))]


def test_a_demo_that_cannot_start_says_why(tmp_path: Path) -> None:
    script = Path(shutil.copy(DESK / "demo.py", tmp_path))

    code, output = run_demo(script)

    assert code == 1
    assert "the demo failed: `llamactl serve library.py:library" in output
    assert "no file library.py" in output
