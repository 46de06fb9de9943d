"""A conversation with two services, and a process that is killed while it works for us.

Run it with `make demo`. It starts `llamactl serve` and two `llamactl worker`, asks three questions in one
session, kills the worker that answers the third with SIGKILL, and shows that the answer comes all the same.
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
"""How long a process may take to say that it works."""
STOP_SECONDS: Final = 15.0
"""How long a process may take to end after SIGTERM."""
ANSWER_SECONDS: Final = 60.0

FIRST: Final = "How do I wait for a coroutine with a timeout?"
FOLLOW_UP: Final = "And how do I cancel it?"
THIRD: Final = "How do I schedule jobs in a priority queue and log errors to a rotating file?"
ROUNDS_OF_THIRD: Final = 6
KILL_AFTER_ROUND: Final = 2


class DemoError(Exception):
    """The demo cannot go on, or did not show what it is to show."""


@asynccontextmanager
async def llamactl(*arguments: str, log: Path, url: str | None = None) -> AsyncIterator[Started]:
    """Run a `llamactl` command that serves; it works when this yields, and has ended when this returns.

    Args:
        *arguments: Of the command.
        log: Takes what the process logs.
        url: The control plane for clients within the process.
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
    """Return what the process says of itself, on one line, as soon as it works."""
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
    """Let a process end in order; one that does not is killed."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Started:
    """A process that works."""

    process: Process
    facts: dict[str, Any]
    """What it said when it had started."""
    log: Path

    @property
    def url(self) -> str:
        """The control plane."""
        return str(self.facts["control_plane_url"])

    @property
    def instance_id(self) -> str:
        """The instance of the service that a worker runs."""
        return str(self.facts["services"][0]["instance_id"])


class QuestionView:
    """One question on the screen: a tree that grows with the events, and the progress below it."""

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
        """Put an event into the tree."""
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
        """Show something that is no event; what follows begins anew."""
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
    """Ask a question and show how it is answered."""
    handle = await client.submit("researcher", session=session, question=question)
    view = QuestionView(question)
    with Live(view, console=console):
        async for event in handle.events():
            view.show(event)
    print_answer(console, await handle.result())


@dataclass(frozen=True, slots=True)
class Takeover:
    """What happened to the third question."""

    killed_pid: int
    survivor: str
    """The instance that answered."""
    seconds: float
    """From the kill to the first event of the second attempt."""
    attempts: int


async def ask_and_kill(
    console: Console, client: Client, session: Session, workers: dict[str, Started]
) -> Takeover:
    """Ask the third question, and kill the process that works on it.

    Args:
        console: Where to show it.
        client: Leads to the control plane.
        session: The conversation.
        workers: The processes that serve the researcher, by instance.
    """
    handle = await client.submit("researcher", session=session, question=THIRD, rounds=ROUNDS_OF_THIRD)
    view = QuestionView(THIRD)
    killed_pid, killed_at, seconds = 0, 0.0, 0.0
    with Live(view, console=console):
        async for event in handle.events():
            if killed_pid and event.type == "QuestionUnderstood":
                raise DemoError("the first step was run again, although it had ended before the kill")
            if killed_pid and not seconds and event.data.get("round") == KILL_AFTER_ROUND:
                seconds = time.monotonic() - killed_at
                view.interrupt(
                    f"[green]another instance goes on with round {KILL_AFTER_ROUND}, {seconds:.1f} s after "
                    "the kill; what was finished is not done again[/]"
                )
            view.show(event)
            if not killed_pid and event.type == "RoundFinished" and event.data["round"] == KILL_AFTER_ROUND:
                killed_pid, killed_at = await _kill_owner(handle, workers), time.monotonic()
                view.interrupt(f"[red]kill -9 {killed_pid}[/], the process that works on this question")
    print_answer(console, await handle.result())
    task = await handle.info()
    if not seconds or task.instance_id is None:
        raise DemoError("the third question was answered by the process that was to be killed")
    return Takeover(killed_pid, task.instance_id, seconds, task.attempt)


async def _kill_owner(handle: TaskHandle, workers: dict[str, Started]) -> int:
    """Kill the process whose instance runs the task, and return its id."""
    owner = (await handle.info()).instance_id
    if owner not in workers:
        raise DemoError(f"the task is run by {owner}, which is none of the workers {', '.join(workers)}")
    process = workers[owner].process
    process.kill()
    await process.wait()
    return process.pid


async def run_demo(console: Console) -> None:
    """Start everything, ask, kill, sum up, stop everything."""
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
    console.print("everything is stopped")


def sum_up(console: Console, takeover: Takeover, survivor: Started) -> None:
    """Print what was shown, and what to try next."""
    console.rule("summary")
    console.print(f"three questions in one session, all answered; process {takeover.killed_pid} was killed")
    console.print(
        f"process {survivor.process.pid} took its task over after {takeover.seconds:.1f} s "
        f"and answered it in attempt {takeover.attempts}"
    )
    console.print("\nTry it yourself, in examples/research_desk, after `pip install '.[demo]'` in the clone:")
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
    """Run the demo; the exit code is 0 if everything was shown."""
    console = Console(highlight=False)
    # SIGTERM then stops all processes as Ctrl-C does.
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
