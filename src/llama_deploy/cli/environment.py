"""Errors in settings from the environment, which name the variable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from llama_deploy.cli.error_messages import CommandError


@contextmanager
def settings_of(cls: type[BaseSettings]) -> Iterator[None]:
    """Turn a validation error of the settings that the body creates into a `CommandError`.

    Raises:
        CommandError: An environment variable has an invalid value.
    """
    try:
        yield
    except ValidationError as exc:
        prefix = cls.model_config.get("env_prefix", "")
        is_hidden = cls.model_config.get("hide_input_in_errors", False)  # it may be secret
        findings = (
            f"{prefix}{'.'.join(str(part) for part in found['loc'])}".upper()
            + ("" if is_hidden else f"={found['input']!r}")
            + f" is not valid: {found['msg']}"
            for found in exc.errors()
        )
        raise CommandError(
            "; ".join(findings),
            hint=f"change or unset the variable; the configuration reference describes {cls.__name__}",
        ) from exc
