"""Reading the data of messages."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llama_deploy.errors import InvalidRequestError
from llama_deploy.messages import QueueMessage
from llama_deploy.types.validation import describe_validation_error

M = TypeVar("M", bound=BaseModel)


def parse_data(model: type[M], message: QueueMessage) -> M:
    """Return the data of a message as a model.

    Raises:
        InvalidRequestError: The data does not have this form.
    """
    try:
        return model.model_validate(message.data)
    except ValidationError as exc:
        raise InvalidRequestError(f"malformed {message.action}: {describe_validation_error(exc)}") from exc
