"""Importing: every public name, without the weight of those that are not used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import llama_deploy

SUBPACKAGES = (
    "services",
    "control_plane",
    "message_queues",
    "message_consumers",
    "message_publishers",
    "messages",
    "orchestrators",
    "client",
    "compat",
    "errors",
    "deploy",
    "cli",
    "types",
    "types.core",
)
SERVERS = ("fastapi", "uvicorn", "sqlalchemy", "llama_deploy.control_plane", "llama_deploy.services")


def in_new_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(statement: str) -> set[str]:
    return set(
        json.loads(in_new_process(f"{statement}\nimport sys, json; print(json.dumps(list(sys.modules)))"))
    )


@pytest.mark.parametrize("name", llama_deploy.__all__)
def test_public_names_can_be_imported(name: str) -> None:
    assert getattr(llama_deploy, name).__name__ == name
    assert name in dir(llama_deploy)


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_subpackages_can_be_imported(name: str) -> None:
    in_new_process(f"import llama_deploy.{name}")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = llama_deploy.Nothing


def test_the_package_alone_imports_none_of_its_parts() -> None:
    loaded = modules_after("import llama_deploy")
    assert [name for name in loaded if name.startswith("llama_deploy.")] == []
    assert "pydantic" not in loaded


def test_a_client_does_not_import_servers() -> None:
    loaded = modules_after("from llama_deploy import Client")
    assert loaded.isdisjoint(SERVERS)
    assert "llama_deploy.client" in loaded


def test_a_connection_for_threads_imports_neither_asyncio_nor_its_http_client() -> None:
    """A process that supervises others stays small with it."""
    loaded = modules_after("import llama_deploy.web.sync_http_connection")
    assert loaded.isdisjoint({*SERVERS, "aiohttp", "asyncio", "workflows"})
    assert "urllib3" in loaded


def test_importing_configures_no_logging_and_starts_no_thread() -> None:
    program = """
import logging, threading
from llama_deploy import *
names = [name for name in logging.root.manager.loggerDict if name.startswith("llama_deploy")]
ours = [logging.getLogger(name) for name in names]
print(logging.root.handlers, [logger.name for logger in ours if logger.handlers or logger.level])
print(threading.active_count())
"""
    assert in_new_process(program).split("\n")[:2] == ["[] []", "1"]
