"""What clients see of an exception in a step."""

from __future__ import annotations

from collections.abc import Callable

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.run.run_outcome import describe_failure


def failing(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as exc:  # noqa: BLE001 - whatever it is
        return exc
    raise AssertionError("it did not fail")


def traceback_of(work: Callable[[], object]) -> str:
    return describe_failure(failing(work)).traceback or ""


def in_package() -> None:
    """Fail in a function of the package that a user has called."""
    Backoff(first="x", longest=1.0).delay(1)  # type: ignore[arg-type]


def test_frames_of_the_package_are_left_out() -> None:
    text = traceback_of(in_package)
    assert "in in_package" in text
    assert "backoff.py" not in text


def test_they_are_left_out_of_the_exceptions_that_led_to_it_too() -> None:
    def work() -> None:
        try:
            in_package()
        except Exception as exc:
            raise ValueError("wrapped") from exc

    text = traceback_of(work)
    assert "ValueError: wrapped" in text
    assert "direct cause" in text
    assert "in in_package" in text
    assert "backoff.py" not in text


def test_they_are_left_out_of_groups() -> None:
    def work() -> None:
        raise ExceptionGroup("several", [failing(in_package), InvalidRequestError("no")])

    text = traceback_of(work)
    assert "InvalidRequestError: no" in text
    assert "backoff.py" not in text


def test_a_traceback_that_has_only_such_frames_is_kept() -> None:
    exc = failing(in_package)
    while exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
        exc.__traceback__ = exc.__traceback__.tb_next
    assert "backoff.py" in (describe_failure(exc).traceback or "")
