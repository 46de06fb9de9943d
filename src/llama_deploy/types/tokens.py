"""Tokens for one resource, as browsers use them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from llama_deploy.types.callers import OWNER_SCOPES, AccessScope, ResourceKind
from llama_deploy.types.keys import Id

MAX_TOKEN_SECONDS: Final = 86_400.0
"""How long a token may be valid."""
DEFAULT_TOKEN_SECONDS: Final = 900.0

TOKEN_SCOPES: Final = OWNER_SCOPES
"""What the callers of a token may do at most."""

TokenScope = Literal[AccessScope.TASKS_READ, AccessScope.TASKS_WRITE, AccessScope.INBOX_ANSWER]


class NewToken(BaseModel):
    """What a new token is to be."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", hide_input_in_errors=True)

    kind: ResourceKind
    """What it is for."""
    id: Id
    """The id of the task, the session or the question; of a stream, that of its task."""
    scopes: Annotated[list[TokenScope], Field(min_length=1, max_length=len(TOKEN_SCOPES))]
    """What its callers may do with the resource. The key that asks for the token must have these scopes."""
    expires_in_seconds: Annotated[
        float, Field(gt=0, le=MAX_TOKEN_SECONDS, allow_inf_nan=False, strict=True)
    ] = DEFAULT_TOKEN_SECONDS
    """After how many seconds it expires."""


class CreatedToken(BaseModel):
    """A new token."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    token: str = Field(repr=False)
    """What callers send as `Authorization: Bearer ...`, or as `?token=...`."""
    expires_at: AwareDatetime
