"""Finds a backend by a name: the `type` of its settings, or the scheme of a URL.

Any installed package adds one with an entry point of the group `llama_deploy.message_queues`: its name is the
backend's, its value the settings class, and its extras are those of the package that the backend needs. A
further entry point for each scheme that differs from the type lets it be found by that too.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from pydantic import ValidationError

from llama_deploy.errors import ConfigError
from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.types.extras import described, load_entry_point
from llama_deploy.types.validation import describe_validation_error

ENTRY_POINT_GROUP: Final = "llama_deploy.message_queues"


def known_backends() -> list[str]:
    """Return the names of the installed backends, sorted."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)


def settings_class(name: str) -> type[MessageQueueConfig]:
    """Return the settings class of a backend.

    Raises:
        ConfigError: There is no such backend, its package is faulty, or one that it needs is not installed.
    """
    found = entry_points(group=ENTRY_POINT_GROUP, name=name)
    if not found:
        raise ConfigError(
            f"there is no message queue of type {name!r}; known are: {', '.join(known_backends())}"
        )
    entry_point = next(iter(found))
    loaded = load_entry_point(entry_point, what="message queue")
    if not (isinstance(loaded, type) and issubclass(loaded, MessageQueueConfig)):
        raise ConfigError(f"the message queue {name!r}: {described(entry_point)} is not a MessageQueueConfig")
    return loaded


def config_from_url(url: str) -> MessageQueueConfig:
    """Return a backend's settings from a URL; what it does not say comes from the environment.

    What it says goes before the environment.

    Args:
        url: Such as `rabbitmq://user:password@host/vhost`; its scheme names the backend.

    Raises:
        ConfigError: No scheme, no such backend, or a URL that cannot work.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        # What stands there may be a password.
        schemes = ", ".join(f"{name}://" for name in known_backends())
        raise ConfigError(f"the address of a message queue begins with one of: {schemes}")
    config_class = settings_class(scheme)
    try:
        return config_class.from_url(url)
    except ValueError as exc:
        told = describe_validation_error(exc) if isinstance(exc, ValidationError) else str(exc)
        raise ConfigError(f"the {scheme}:// address of the message queue: {told}") from exc


def config_from_settings(settings: Mapping[str, Any]) -> MessageQueueConfig:
    """Return a backend's settings from JSON values, such as the answer of `GET /queue_config`.

    Where they carry no credentials, those of the environment are used, also when they stand in a URL there.

    Args:
        settings: The fields, and the backend's name under `type`.

    Raises:
        ConfigError: No `type`, no such backend, or a value that cannot work.
    """
    name = settings.get("type")
    if not isinstance(name, str):
        raise ConfigError(
            f"message queue settings have a `type`, one of: {', '.join(known_backends())}; not {name!r}"
        )
    config_class = settings_class(name)
    try:
        config = config_class(**settings)
        told, own = config.private_settings(), _private_settings_of_the_environment(config_class)
        # What is told may hold a part of the environment's own, from variables for single fields.
        return config_class(**{**settings, **own}) if told.items() <= own.items() else config
    except ValidationError as exc:
        raise ConfigError(
            f"settings of the message queue {name!r}: {describe_validation_error(exc)}"
        ) from exc


def _private_settings_of_the_environment(config_class: type[MessageQueueConfig]) -> dict[str, Any]:
    try:
        return config_class().private_settings()
    except ValidationError:
        # A variable such as KAFKA_URL may belong to another program, and what is told does without it.
        return {}
