"""Wire models of 0.6 that nothing uses any more."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, Field, HttpUrl, TypeAdapter

from llama_deploy.types import generate_id
from llama_deploy.types.topics import CONTROL_PLANE

CONTROL_PLANE_NAME: Final = CONTROL_PLANE
"""The type of messages to the control plane."""

http_url_adapter: Final = TypeAdapter(HttpUrl)
"""Checks URLs."""
PydanticValidatedUrl = Annotated[
    str, BeforeValidator(lambda value: str(http_url_adapter.validate_python(value)))
]
"""A URL as text."""


class ToolCallBundle(BaseModel):
    """A tool and its arguments."""

    tool_name: str
    tool_args: list[Any]
    tool_kwargs: dict[str, Any]


class ToolCall(BaseModel):
    """A call of a tool."""

    id_: str = Field(default_factory=generate_id)
    tool_call_bundle: ToolCallBundle
    source_id: str


class ToolCallResult(BaseModel):
    """What a tool has returned."""

    id_: str
    """That of the call."""
    tool_message: Any
    """A `ChatMessage`."""
    result: str


class HumanResponse(BaseModel):
    """The answer of a person."""

    result: str
