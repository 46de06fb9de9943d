"""All code in the README and the pages with examples runs as it stands there, in real processes.

A comment above each block of Python or shell says what is done with it:

    file: NAME              saved
    serve [: NAME]          saved, if named, and started; everything started before is stopped
    background [: NAME]     the same, beside what was started before
    run [; prints: A | B]   run to its end, which must be a success and print A, then B
    not run: REASON         left alone

Ports are replaced by free ones; nothing else is changed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_deploy.client import SyncClient
from llama_deploy.errors import UnavailableError
from llama_deploy.testing.processes import free_port

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
APART = {ROOT / "docs" / "how-to" / "custom-queue.md"}
"""Its code is a package of its own: `tests/contract/test_documented_queue.py` runs it."""
START_SECONDS = 90.0
STOP_SECONDS = 60.0
RUN_SECONDS = 90.0

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(
    r"(?P<action>file|serve|background|run|not run)(?:: (?P<name>[^;]+))?(?:; prints: (?P<prints>.+))?"
)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of code, and what is to be done with it."""

    line: int
    language: str
    code: str
    action: str
    name: str | None
    prints: list[str]


def read_snippets(text: str) -> list[Snippet]:
    """Return the blocks of Python and shell of a Markdown text, in order."""
    snippets = []
    for block in _BLOCK.finditer(text):
        if block["language"] not in ("python", "sh"):
            continue
        line = text.count("\n", 0, block.start()) + 1
        mark = _MARK.fullmatch(block["mark"] or "")
        assert mark is not None, f"line {line}: a comment above the code must say whether to run it"
        prints = [part.strip() for part in (mark["prints"] or "").split(" | ") if part]
        snippets.append(Snippet(line, block["language"], block["code"], mark["action"], mark["name"], prints))
    return snippets


def has_code(page: Path) -> bool:
    languages = (block["language"] for block in _BLOCK.finditer(page.read_text(encoding="utf-8")))
    return not {"python", "sh"}.isdisjoint(languages)


PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if page not in APART and has_code(page))


class Reader:
    """Does what the README says, in a folder and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._queue_port = free_port(), free_port()
        self._started: list[subprocess.Popen[bytes]] = []
        url = f"http://127.0.0.1:{self._port}"
        self._client = SyncClient(control_plane_url=url, timeout=RUN_SECONDS)
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "LLAMA_DEPLOY_CONTROL_PLANE_URL": url,
            "CONTROL_PLANE_PORT": str(self._port),
            "SIMPLE_MESSAGE_QUEUE_PORT": str(self._queue_port),
        }

    def follow(self, snippet: Snippet) -> None:
        code = snippet.code.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
        code = code.replace("port=8002", f"port={free_port()}")
        if snippet.language == "sh":
            code = code.replace(
                "llamactl serve", f"llamactl serve --port {self._port} --queue-port {self._queue_port}"
            )
        match snippet.action:
            case "file":
                self._save(snippet, code)
            case "serve":
                self.stop()
                self._start(snippet, code, instances=code.count(".py:"))
            case "background":
                self._start(snippet, code, instances=self._living_instances() + 1)
            case "run":
                self._run(snippet, code)

    def _save(self, snippet: Snippet, code: str) -> Path:
        path = self._folder / (snippet.name or f"line_{snippet.line}.py")
        path.write_text(code, encoding="utf-8")
        return path

    def _command(self, snippet: Snippet, code: str) -> list[str]:
        if snippet.language == "sh":
            return ["bash", "-ec", code]
        return [sys.executable, str(self._save(snippet, code))]

    def _start(self, snippet: Snippet, code: str, *, instances: int) -> None:
        log = self._folder / f"line_{snippet.line}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(snippet, code),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - these tests have no threads
            )
        self._started.append(process)

        def works() -> bool:
            assert process.poll() is None, f"line {snippet.line} ended:\n{log.read_text()}"
            return self._living_instances() >= instances

        wait_until(works, seconds=START_SECONDS, what=lambda: f"line {snippet.line}:\n{log.read_text()}")

    def _living_instances(self) -> int:
        """Return how many instances the control plane knows, -1 while there is none."""
        try:
            services = self._client.core.services.list()
        except UnavailableError:
            return -1
        return sum(instance.alive for service in services for instance in service.instances)

    def _run(self, snippet: Snippet, code: str) -> None:
        done = subprocess.run(
            self._command(snippet, code),
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        shown = f"line {snippet.line}:\n{code}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, shown
        assert "Traceback" not in done.stderr, shown
        place = 0
        for expected in snippet.prints:
            place = done.stdout.find(expected, place)
            assert place >= 0, f"{expected!r} is missing in {shown}"
            place += len(expected)

    def stop(self) -> None:
        """Stop what was started, last things first, as Ctrl-C does. Each must end in order."""
        while self._started:
            process = self._started.pop()
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self._client.close()


def _hear_ctrl_c() -> None:
    """In the child: what was started in the background of a shell has SIGINT ignored, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition: Callable[[], bool], *, seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what()}"
        time.sleep(0.05)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


def test_every_snippet_of_the_readme_works(reader: Reader) -> None:
    snippets = read_snippets(README.read_text(encoding="utf-8"))

    assert len([snippet for snippet in snippets if snippet.action == "run"]) >= 3
    for snippet in snippets:
        reader.follow(snippet)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_snippet_of_a_page_works(reader: Reader, page: Path) -> None:
    for snippet in read_snippets(page.read_text(encoding="utf-8")):
        reader.follow(snippet)


def test_code_without_a_mark_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"line 3: a comment above the code"):
        read_snippets("text\n\n```python\nprint(1)\n```\n")


def test_the_quickstart_is_short() -> None:
    snippets = read_snippets(README.read_text(encoding="utf-8"))

    first = next(snippet for snippet in snippets if snippet.language == "python")
    assert first.action == "file"
    assert len([line for line in first.code.splitlines() if line.strip()]) <= 20


def test_the_custom_service_is_short() -> None:
    page = ROOT / "docs" / "how-to" / "custom-service.md"

    first = read_snippets(page.read_text(encoding="utf-8"))[0]
    assert (first.action, first.name) == ("file", "shouter.py")
    assert len(first.code.splitlines()) < 30


def test_the_readme_names_targets_of_make_that_exist() -> None:
    targets = set(re.findall(r"`make ([\w-]+)`", README.read_text(encoding="utf-8")))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()
