"""No text of a user controls the terminal of `llamactl`, or looks like a record in its log."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.e2e.llamactl import ANY_PORTS, llamactl, started

from llama_deploy.printable import printable, printable_lines

FORGED = "2026-01-01 ERROR forged"
APPLICATION = rf"""
import logging

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

BAD = "x\n{FORGED}\x1b[31m\x9b32m\r\u2028{FORGED}"
Named = type(BAD, (Event,), {{"__module__": __name__}})


class Desk(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Named(text=BAD))
        logging.getLogger("desk").warning("heard %s", BAD)
        if ev.fails:
            raise type(BAD, (LookupError,), {{}})(BAD)
        return StopEvent(result=BAD)
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_that_a_workflow_says_is_forged(tmp_path: Path, log_format: str) -> None:
    (tmp_path / "desk.py").write_text(APPLICATION)
    with started(
        tmp_path, "--log-format", log_format, "serve", "desk.py:Desk", *ANY_PORTS, "--json"
    ) as process:
        url = json.loads(process.line())["control_plane_url"]
        done = [
            llamactl(tmp_path, *before, "run", "Desk", f"fails={fails}", server=url)
            for fails in ("false", "true")
            for before in ((), ("--verbose",))
        ]
        sent = llamactl(tmp_path, "send", "\x1b[31m", "--event", f"a\n{FORGED}", server=url)
        unknown = llamactl(tmp_path, "run", f"a\n{FORGED}\x1b[31m", server=url)
        _, log = process.end(signal.SIGINT)
    for printed in (log, *(each.stdout + each.stderr for each in (*done, sent, unknown))):
        assert not {"\x1b", "\x9b", "\r", "\u2028"} & set(printed), printed
    results = [each.stdout for each in done]
    for line in "".join([log, *(each.stderr for each in done), sent.stderr, unknown.stderr]).splitlines():
        assert not line.startswith(FORGED), line
    # A result keeps its lines.
    assert any(f"\n{FORGED}\\x1b[31m" in text for text in results)


@pytest.mark.parametrize(
    "address",
    ["postgresql://user:s3cret word@host:notaport/db", "sqlite:////tmp/x?key=s3cret", "u:s3cret@h://x"],
)
def test_no_command_shows_the_secret_of_an_address(tmp_path: Path, address: str) -> None:
    for arguments in (
        ("db", "current", "--store", address),
        ("db", "upgrade", "--store", address),
        ("serve", "--store", address, *ANY_PORTS),
        ("serve", "--queue", address.replace("postgresql", "redis"), *ANY_PORTS),
        ("-s", address, "status"),
    ):
        done = llamactl(tmp_path, "--verbose", *arguments)
        assert done.returncode not in (0, None)
        assert "s3cret" not in done.stdout + done.stderr, arguments
        assert "error:" in done.stderr.lower()


def test_a_text_without_controls_stays_as_it_is() -> None:
    assert printable("Grüße, 你好 👩‍👩‍👧") == "Grüße, 你好 👩‍👩‍👧"
    assert printable_lines("a\n\tb\r\nc\x1b") == "a\n\tb\nc\\x1b"
    assert printable("a\nb\ud800") == "a\\nb\\ud800"
