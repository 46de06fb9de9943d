"""llamactl in a pipe whose other end is closed, as by `head`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.e2e.llamactl import ANY_PORTS, LLAMACTL, PATIENCE, environment, started

BROKEN_PIPE = 141
"""The exit code of a program that is ended by SIGPIPE, as a shell tells it."""
STORE = ("--store", "sqlite:///schema.db")


def into_closed_pipe(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a command whose output nobody reads; return its exit code and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*LLAMACTL, *arguments],
            cwd=folder,
            env=environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("--version",),
        ("db", "--help"),
        ("db", "current", "--help"),
        ("db", "current", *STORE),
        ("db", "current", *STORE, "--json"),
        ("db", "upgrade", *STORE),
        ("db", "upgrade", *STORE, "--json"),
    ],
)
def test_a_command_ends_quietly(folder: Path, command: tuple[str, ...]) -> None:
    assert into_closed_pipe(folder, *command) == (BROKEN_PIPE, "")


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("status", "--json"),
        ("sessions", "create"),
        ("sessions", "create", "--json"),
        ("run", "repeat", "message=ho"),
        ("run", "repeat", "message=ho", "--json"),
        ("run", "repeat", "message=ho", "times=0"),
    ],
)
def test_a_command_for_a_server_ends_quietly(folder: Path, server: str, command: tuple[str, ...]) -> None:
    assert into_closed_pipe(folder, "-s", server, *command) == (BROKEN_PIPE, "")


FULL = 74
"""The exit code when the output cannot be written, as `EX_IOERR` of sysexits.h."""


def in_a_shell(folder: Path, line: str, *arguments: str) -> tuple[int, str]:
    """Run a command as `line`, in which `"$@"` is the command; return its exit code and stderr."""
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *LLAMACTL, *arguments],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stderr


def for_server(server: str, command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command with the server that it is for, unless it is for none."""
    return command if command[0] == "db" else ("-s", server, *command)


IN_A_SHELL = (
    ("--help",),
    ("--version",),
    ("db", "current", *STORE),
    ("status",),
    ("status", "--json"),
    ("sessions", "create"),
    ("run", "repeat", "message=ho"),
    ("run", "repeat", "message=ho", "--json"),
    ("run", "repeat", "message=ho", "--detach"),
)


@pytest.mark.parametrize("command", IN_A_SHELL)
def test_a_full_disk_is_an_error(folder: Path, server: str, command: tuple[str, ...]) -> None:
    told = "error: cannot write to stdout: No space left on device\n"
    assert in_a_shell(folder, '"$@" > /dev/full', *for_server(server, command)) == (FULL, told)


@pytest.mark.parametrize("command", IN_A_SHELL)
def test_a_closed_stdout_is_like_a_reader_that_has_ended(
    folder: Path, server: str, command: tuple[str, ...]
) -> None:
    assert in_a_shell(folder, '"$@" >&-', *for_server(server, command)) == (BROKEN_PIPE, "")


def test_a_closed_or_full_stderr_does_not_matter(folder: Path, server: str) -> None:
    for line in ('"$@" 2>&-', '"$@" 2>/dev/full', '"$@" <&- 2>&-'):
        assert in_a_shell(folder, f"{line} >/dev/null", "-s", server, "run", "repeat", "message=ho")[0] == 0
        assert in_a_shell(folder, f"{line} >/dev/null", "-s", server, "run", "nobody")[0] == 3


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_serve_ends_without_a_traceback(folder: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = ("serve", "cli_app:repeat", *ANY_PORTS, "--data-dir", str(tmp_path), *options)
    code, errors = into_closed_pipe(folder, *arguments)
    assert code == BROKEN_PIPE
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("*.db-wal")), "the store was not closed"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_worker_ends_without_a_traceback(folder: Path, server: str, options: tuple[str, ...]) -> None:
    code, errors = into_closed_pipe(folder, "-s", server, "worker", "again=cli_app:repeat", *options)
    assert code == BROKEN_PIPE
    assert "Traceback" not in errors


def test_an_error_keeps_its_code_when_nobody_reads_it(folder: Path, server: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*LLAMACTL, "-s", server, "run", "nothing"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=writer,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_when_nobody_reads_its_log(folder: Path, tmp_path: Path, signum: signal.Signals) -> None:
    reader, writer = os.pipe()
    arguments = ("serve", "cli_app:repeat", *ANY_PORTS, "--json", "--data-dir", str(tmp_path))
    with started(folder, *arguments, stderr=writer) as process:
        os.close(writer)
        process.line()
        os.close(reader)
        process.process.send_signal(signum)
        assert process.process.wait(PATIENCE) == 0
    assert not list(tmp_path.glob("*.db-wal")), "the store was not closed"
