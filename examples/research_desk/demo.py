"""A conversation with two services that survives the death of a worker.

Run it with `make demo`. It starts one `llamactl serve` and two `llamactl worker`, and asks three questions in
one session. It kills the worker that answers the third with SIGKILL, and another worker completes the answer.
Everything is local: free ports of 127.0.0.1, a temporary folder for the data, no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.tree import Tree

from llama_deploy import Client
from llama_deploy.client import Session, TaskHandle
from llama_deploy.errors import LlamaDeployError
from llama_deploy.types import TaskEvent

HERE: Final = Path(__file__).parent
START_SECONDS: Final = 60.0
"""How long a process may take to start."""
STOP_SECONDS: Final = 15.0
"""How long a process may take to exit after SIGTERM."""
ANSWER_SECONDS: Final = 60.0

FIRST: Final = "How do I wait for a coroutine with a timeout?"
FOLLOW_UP: Final = "And how do I cancel it?"
THIRD: Final = "How do I schedule jobs in a priority queue and log errors to a rotating file?"
ROUNDS_OF_THIRD: Final = 6
KILL_AFTER_ROUND: Final = 2


class DemoError(Exception):
    """The demo cannot continue, or did not show the takeover."""


@asynccontextmanager
async def llamactl(*arguments: str, log: Path, url: str | None = None) -> AsyncIterator[Started]:
    """Run a `llamactl` command that serves. It is ready when this yields, and has exited when this returns.

    Args:
        *arguments: The arguments of the command.
        log: The file for the log of the process.
        url: The control plane for clients inside the process.
    """
    environment = os.environ | ({} if url is None else {"LLAMA_DEPLOY_CONTROL_PLANE_URL": url})
    command = (sys.executable, "-m", "llama_deploy.cli", *arguments, "--json")
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=errors, cwd=HERE, env=environment
        )
    try:
        yield Started(process, await _announcement(process, arguments, log), log)
    finally:
        await _stop(process)


async def _announcement(process: Process, arguments: tuple[str, ...], log: Path) -> dict[str, Any]:
    """Return the facts that the process prints on one line when it is ready."""
    line = b""
    with contextlib.suppress(TimeoutError):
        if process.stdout is not None:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    if not line:
        raise _did_not_start(arguments, log)
    facts: dict[str, Any] = json.loads(line)
    return facts


def _did_not_start(arguments: tuple[str, ...], log: Path) -> DemoError:
    return DemoError(f"`llamactl {' '.join(arguments)}` did not start:\n{log.read_text()}")


async def _stop(process: Process) -> None:
    """Terminate a process; kill it if it does not exit in time."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Started:
    """A running process."""

    process: Process
    facts: dict[str, Any]
    """What it printed when it was ready."""
    log: Path

    @property
    def url(self) -> str:
        """The URL of the control plane."""
        return str(self.facts["control_plane_url"])

    @property
    def instance_id(self) -> str:
        """The id of the instance that a worker runs."""
        return str(self.facts["services"][0]["instance_id"])


class QuestionView:
    """Shows one question: a tree of its events, and a progress bar below it."""

    def __init__(self, question: str) -> None:
        self._tree = Tree(f"[bold]{escape(question)}[/]")
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
        )
        self._bar = self._progress.add_task("waiting for an instance", total=None)
        self._round: Tree | None = None

    def __rich__(self) -> Group:
        return Group(self._tree, self._progress)

    def show(self, event: TaskEvent) -> None:
        """Add an event to the tree."""
        data = event.data
        match event.type:
            case "QuestionUnderstood":
                builds_on = f"; builds on {', '.join(data['builds_on'])}" if data["builds_on"] else ""
                self._tree.add(f"about {', '.join(data['topics'])}[dim]{builds_on}[/]")
            case "SearchStarted":
                self._round = self._round or self._tree.add(f"round {data['round']}")
                self._round.add(f"[cyan]{escape(data['query'])}[/]")
                self._describe(f"round {data['round']}")
            case "PassageFound":
                self._describe(f"round {data['round']}: {data['source']}")
            case "RoundFinished" if self._round is not None:
                self._progress.update(self._bar, completed=data["round"], total=data["rounds"])
                made, known = len(self._round.children), data["passages"]
                self._round.label = f"round {data['round']}: {made} searches, {known} passages known"
                if data["rounds"] > 1:
                    self._round.children.clear()
                self._round = None
        if event.terminal:
            self._describe("answered")

    def _describe(self, text: str) -> None:
        self._progress.update(self._bar, description=escape(text))

    def interrupt(self, text: str) -> None:
        """Show a message that is not an event, and start the progress again."""
        self._tree.add(text)
        self._round = None
        self._progress.update(self._bar, description="waiting for an instance", completed=0)


def print_answer(console: Console, answer: dict[str, Any]) -> None:
    """Print the passages with their sources."""
    console.print()
    for passage in answer["passages"]:
        first_line = passage["text"].strip().partition("\n")[0]
        console.print(f"  [green]{passage['source']}[/]  [dim]{passage['location']}[/]", soft_wrap=True)
        console.print(f"    {escape(first_line)}", soft_wrap=True)
    console.print()


async def ask(console: Console, client: Client, session: Session, question: str) -> None:
    """Ask a question, and show its events and its answer."""
    handle = await client.submit("researcher", session=session, question=question)
    view = QuestionView(question)
    with Live(view, console=console):
        async for event in handle.events():
            view.show(event)
    print_answer(console, await handle.result())


@dataclass(frozen=True, slots=True)
class Takeover:
    """How another instance took over the third question."""

    killed_pid: int
    survivor: str
    """The instance that answered."""
    seconds: float
    """From the kill to the first event of the second attempt."""
    attempts: int


async def ask_and_kill(
    console: Console, client: Client, session: Session, workers: dict[str, Started]
) -> Takeover:
    """Ask the third question, and kill the process that runs it.

    Args:
        console: Shows the question.
        client: A client of the control plane.
        session: The conversation.
        workers: The processes that serve the researcher, by instance id.
    """
    handle = await client.submit("researcher", session=session, question=THIRD, rounds=ROUNDS_OF_THIRD)
    view = QuestionView(THIRD)
    killed_pid, killed_at, seconds = 0, 0.0, 0.0
    with Live(view, console=console):
        async for event in handle.events():
            if killed_pid and event.type == "QuestionUnderstood":
                raise DemoError("the first step ran again, although it had finished before the kill")
            if killed_pid and not seconds and event.data.get("round") == KILL_AFTER_ROUND:
                seconds = time.monotonic() - killed_at
                view.interrupt(
                    f"[green]another instance continues with round {KILL_AFTER_ROUND}, {seconds:.1f} s after "
                    "the kill; finished steps do not run again[/]"
                )
            view.show(event)
            if not killed_pid and event.type == "RoundFinished" and event.data["round"] == KILL_AFTER_ROUND:
                killed_pid, killed_at = await _kill_owner(handle, workers), time.monotonic()
                view.interrupt(f"[red]kill -9 {killed_pid}[/], the process that runs this question")
    print_answer(console, await handle.result())
    task = await handle.info()
    if not seconds or task.instance_id is None:
        raise DemoError("the third question was not taken over: the process to kill answered it")
    return Takeover(killed_pid, task.instance_id, seconds, task.attempt)


async def _kill_owner(handle: TaskHandle, workers: dict[str, Started]) -> int:
    """Kill the process whose instance runs the task, and return its id."""
    owner = (await handle.info()).instance_id
    if owner not in workers:
        raise DemoError(f"instance {owner} runs the task, but the workers are {', '.join(workers)}")
    process = workers[owner].process
    process.kill()
    await process.wait()
    return process.pid


async def run_demo(console: Console) -> None:
    """Start all processes, ask, kill a worker, print a summary, and stop all processes."""
    async with AsyncExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="research_desk_")))
        started = time.monotonic()
        desk = await stack.enter_async_context(
            llamactl(
                *("serve", "library.py:library", "--port", "0", "--queue-port", "0"),
                *("--data-dir", str(data / "desk")),
                log=data / "serve.log",
            )
        )
        workers = {}
        for number in (1, 2):
            worker = await stack.enter_async_context(
                llamactl(
                    *("--server", desk.url, "worker", "researcher.py:researcher"),
                    log=data / f"worker{number}.log",
                    url=desk.url,
                )
            )
            workers[worker.instance_id] = worker
        console.print(
            f"[bold]library[/] with control plane and queue: process {desk.process.pid}, {desk.url}"
        )
        pids = " and ".join(str(worker.process.pid) for worker in workers.values())
        console.print(f"[bold]researcher[/]: two instances, processes {pids}")
        console.print(f"all started in {time.monotonic() - started:.1f} s\n")

        client = await stack.enter_async_context(Client(control_plane_url=desk.url, timeout=ANSWER_SECONDS))
        session = await client.core.sessions.create()
        await ask(console, client, session, FIRST)
        await ask(console, client, session, FOLLOW_UP)
        takeover = await ask_and_kill(console, client, session, workers)
        sum_up(console, takeover, workers[takeover.survivor])
    console.print("all processes are stopped")


def sum_up(console: Console, takeover: Takeover, survivor: Started) -> None:
    """Print a summary, and commands to try next."""
    console.rule("summary")
    console.print(f"three questions in one session, all answered; process {takeover.killed_pid} was killed")
    console.print(
        f"process {survivor.process.pid} took over its task after {takeover.seconds:.1f} s "
        f"and answered it in attempt {takeover.attempts}"
    )
    install = escape("pip install '.[demo]'")
    console.print(f"\nTry it yourself, in examples/research_desk, after `{install}` in the clone:")
    for command in (
        "llamactl serve library.py:library researcher.py:researcher",
        "llamactl run library query='copy a directory tree' top=5",
        f"llamactl run researcher question='{FIRST}' rounds=3",
        "llamactl worker researcher.py:researcher    # another instance",
        "llamactl status",
    ):
        console.print(f"  {command}", soft_wrap=True)
    console.print()


def main() -> int:
    """Run the demo. Returns the exit code: 0 if it was successful."""
    console = Console(highlight=False)
    # SIGTERM stops all processes, like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(run_demo(console))
    except (DemoError, LlamaDeployError) as exc:
        console.print(f"[red]the demo failed:[/] {escape(str(exc))}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
