"""Settings that come from the environment: read, or refused in words that name the variable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from llama_deploy.cli.error_messages import CommandError


@contextmanager
def settings_of(cls: type[BaseSettings]) -> Iterator[None]:
    """Explain why the settings that are made in the body cannot be.

    Raises:
        CommandError: A variable of the environment has a value that cannot work.
    """
    try:
        yield
    except ValidationError as exc:
        prefix = cls.model_config.get("env_prefix", "")
        findings = (
            f"{prefix}{'.'.join(str(part) for part in found['loc'])}".upper()
            + f" cannot be {found['input']!r}: {found['msg']}"
            for found in exc.errors()
        )
        raise CommandError(
            "; ".join(findings),
            hint=f"set the variable otherwise, or unset it; the fields of {cls.__name__} say what they take",
        ) from exc
