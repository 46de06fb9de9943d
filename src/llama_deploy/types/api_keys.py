"""API keys on the wire."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from llama_deploy.types.callers import OPERATOR_SCOPES, OWNER_SCOPES, AccessScope
from llama_deploy.types.owners import SubjectName, TenantName

MAX_KEY_NAME: Final = 200
"""How many characters the name of a key may have."""
MAX_KEY_SECONDS: Final = 100 * 366 * 86_400.0
"""How long a key that expires may be valid."""


class NewApiKey(BaseModel):
    """What a new key is to be."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", hide_input_in_errors=True)

    scopes: Annotated[list[AccessScope], Field(min_length=1, max_length=len(AccessScope))]
    """What its callers may do."""
    expires_in_seconds: Annotated[
        float | None, Field(gt=0, le=MAX_KEY_SECONDS, allow_inf_nan=False, strict=True)
    ]
    """After how many seconds it expires. None: never."""
    name: Annotated[str, Field(max_length=MAX_KEY_NAME, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    """What it is for, such as the program that uses it."""
    tenant: TenantName | None = None
    """With whose sessions, tasks and questions its callers work. None: those of the tenant of the key that
    creates it; of a key of the default tenant, those of the default tenant."""
    subject: SubjectName | None = None
    """The user of the tenant to whom its callers are bound: they work with nothing else. None: they work with
    all of the tenant."""

    @model_validator(mode="after")
    def _check_scopes(self) -> NewApiKey:
        if self.subject is not None:
            refused, whose = set(self.scopes) - OWNER_SCOPES, "a subject"
        elif self.tenant is not None:
            refused, whose = set(self.scopes) & OPERATOR_SCOPES, "a tenant"
        else:
            return self
        if refused:
            raise ValueError(f"a key of {whose} cannot have the scope {min(refused)}")
        return self


class ApiKeyView(BaseModel):
    """A key, without its secret."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    key_id: str
    """The part of the key that is not secret."""
    name: str
    tenant: str = ""
    """Empty: the default one."""
    subject: str | None = None
    """To whom its callers are bound. None: to nobody."""
    scopes: list[str]
    """Those of a newer release are kept."""
    created_at: AwareDatetime
    created_by: str
    """The name of the caller who has created it."""
    expires_at: AwareDatetime | None
    """None: it does not expire."""
    revoked_at: AwareDatetime | None
    """None: it was not revoked."""


class CreatedApiKey(ApiKeyView):
    """A new key, with its secret, which is not stored and cannot be shown again."""

    key: str = Field(repr=False)
    """What callers send as `Authorization: Bearer ...`."""


class ApiKeyPage(BaseModel):
    """A page of the keys."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    items: list[ApiKeyView]
    """The newest first."""
    next_cursor: str | None = None
    """The cursor of the next page. None: this is the last one."""
