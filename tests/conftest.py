"""What every test gets: a clean environment, and hypothesis settings fit for a shared machine."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# A loaded machine is no reason to fail, so no example has a deadline; pytest's timeout bounds the whole test.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

pytest.register_assert_rewrite("tests.programs.runs")
pytest_plugins = ["tests.figures", "tests.pulse", "tests.servers.postgresql"]

SETTINGS_PREFIXES = (
    "AWS_",
    "CONTROL_PLANE_",
    "LLAMA_DEPLOY_",
    "NATS_",
    "RABBITMQ_",
    "REDIS_",
    "SIMPLE_MESSAGE_QUEUE_",
    "SIMPLE_ORCHESTRATOR_",
)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's own settings, which the settings classes would read."""
    for name in list(os.environ):
        if name.upper().startswith(SETTINGS_PREFIXES):
            monkeypatch.delenv(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape halves of characters in what a test has logged: pytest-xdist cannot transmit them."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
