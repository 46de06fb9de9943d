"""Finds a backend by a name: the `type` of its settings, or the scheme of a URL.

Any installed package can add a backend with an entry point in the group `llama_deploy.message_queues`. Its
name is that of the backend, its value the settings class, and its extras name the package that the backend
needs. Further entry points add schemes that differ from the type.
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
from llama_deploy.web.shown_url import shown_scheme

ENTRY_POINT_GROUP: Final = "llama_deploy.message_queues"


def known_backends() -> list[str]:
    """Return the names of the installed backends, sorted."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)


def settings_class(name: str) -> type[MessageQueueConfig]:
    """Return the settings class of a backend.

    Raises:
        ConfigError: The backend is unknown, its package is faulty, or a package that it needs is missing.
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
    """Return a backend's settings from a URL; the environment supplies the rest.

    Args:
        url: Such as `rabbitmq://user:password@host/vhost`; its scheme names the backend.

    Raises:
        ConfigError: The scheme is missing or unknown, or the URL is not valid.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        # The text may contain a password.
        schemes = ", ".join(f"{name}://" for name in known_backends())
        raise ConfigError(f"the URL of a message queue begins with one of: {schemes}")
    config_class = settings_class(scheme if scheme in known_backends() else shown_scheme(url))
    try:
        return config_class.from_url(url)
    except ValueError as exc:
        told = describe_validation_error(exc) if isinstance(exc, ValidationError) else str(exc)
        raise ConfigError(f"the {scheme}:// address of the message queue: {told}") from exc


def config_from_settings(settings: Mapping[str, Any]) -> MessageQueueConfig:
    """Return a backend's settings from JSON values, such as the answer of `GET /queue_config`.

    If they have no credentials, those of the environment are used, including those in a URL there.

    Args:
        settings: The fields, and the backend's name under `type`.

    Raises:
        ConfigError: The `type` is missing or unknown, or a value is not valid.
    """
    name = settings.get("type")
    if not isinstance(name, str):
        raise ConfigError(
            f"message queue settings need a `type`, one of: {', '.join(known_backends())}; not {name!r}"
        )
    config_class = settings_class(name)
    try:
        config = config_class(**settings)
        given, own = config.private_settings(), _private_settings_of_the_environment(config_class)
        # The settings may hold some of the environment's own credentials, from variables for single fields.
        return config_class(**{**settings, **own}) if given.items() <= own.items() else config
    except ValidationError as exc:
        raise ConfigError(
            f"settings of the message queue {name!r}: {describe_validation_error(exc)}"
        ) from exc


def _private_settings_of_the_environment(config_class: type[MessageQueueConfig]) -> dict[str, Any]:
    try:
        return config_class().private_settings()
    except ValidationError:
        # A variable such as KAFKA_URL may belong to another program; the given settings suffice.
        return {}
