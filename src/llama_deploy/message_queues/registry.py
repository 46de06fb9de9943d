"""Finds a backend by its name: the `type` of its settings, which is also the scheme of its URLs.

Any installed package adds one with an entry point of the group `llama_deploy.message_queues`, whose name is
the backend's and whose value is its settings class.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from pydantic import ValidationError

from llama_deploy.errors import ConfigError
from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.types.validation import describe_validation_error

ENTRY_POINT_GROUP: Final = "llama_deploy.message_queues"


def known_backends() -> list[str]:
    """Return the names of the installed backends, sorted."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)


def settings_class(name: str) -> type[MessageQueueConfig]:
    """Return the settings class of a backend.

    Raises:
        ConfigError: There is no such backend, or the package that it needs is not installed.
    """
    found = entry_points(group=ENTRY_POINT_GROUP, name=name)
    if not found:
        raise ConfigError(
            f"there is no message queue of type {name!r}; known are: {', '.join(known_backends())}"
        )
    entry_point = next(iter(found))
    try:
        loaded = entry_point.load()
    except ImportError as exc:
        raise ConfigError(
            f"the message queue {name!r} needs a package that is not installed ({exc}); "
            f"install it with: pip install 'llama-deploy[{name}]'"
        ) from exc
    if not (isinstance(loaded, type) and issubclass(loaded, MessageQueueConfig)):
        raise ConfigError(f"the entry point {entry_point.value!r} of {name!r} is not a MessageQueueConfig")
    return loaded


def config_from_settings(settings: Mapping[str, Any]) -> MessageQueueConfig:
    """Return a backend's settings from JSON values, such as the answer of `GET /queue_config`.

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
    try:
        return settings_class(name)(**settings)
    except ValidationError as exc:
        raise ConfigError(
            f"settings of the message queue {name!r}: {describe_validation_error(exc)}"
        ) from exc
