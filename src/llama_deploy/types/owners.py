"""To whom sessions, tasks and questions belong."""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple, TypeGuard
from urllib.parse import quote

from pydantic import Field

from llama_deploy.printable import CONTROLS, has_controls
from llama_deploy.types.ids import MAX_ID_LENGTH
from llama_deploy.types.keys import DEFAULT_TENANT, internal_key

TENANT_PATTERN: Final = r"^[0-9A-Za-z]([0-9A-Za-z._-]{0,61}[0-9A-Za-z])?$"
"""What a tenant can be called: at most 63 letters, digits and `.`, `_` and `-` between them."""
SUBJECT_PATTERN: Final = rf"^[^{CONTROLS}]*$"

TENANT_HEADER: Final = "LlamaDeploy-Tenant"
SUBJECT_HEADER: Final = "LlamaDeploy-Subject"
"""Percent-encoded, because a subject may have any characters."""
OWNER_HEADERS: Final = (TENANT_HEADER.lower().encode(), SUBJECT_HEADER.lower().encode())
"""Both, as servers see them."""

TenantName = Annotated[str, Field(pattern=TENANT_PATTERN)]
SubjectName = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH, pattern=SUBJECT_PATTERN)]
"""See `is_subject`."""


def is_tenant(value: object) -> TypeGuard[str]:
    """Whether a value is the name of a tenant, but the default one."""
    return isinstance(value, str) and re.fullmatch(TENANT_PATTERN, value, re.ASCII) is not None


def is_subject(value: object) -> TypeGuard[str]:
    """Whether a value is the name of a subject."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and not has_controls(value)


class Owner(NamedTuple):
    """A tenant, or one subject in it."""

    tenant: str = DEFAULT_TENANT
    subject: str | None = None
    """None: whatever belongs to the tenant, to whichever subject."""

    @property
    def is_default(self) -> bool:
        """Whether this is the whole default tenant, of which the ids are the keys."""
        return not self.tenant and self.subject is None

    def key_of(self, public_id: str) -> str:
        """Return the key of a session, a task or a question.

        Raises:
            ValueError: The id contains the separator.
        """
        return internal_key(self.tenant, public_id)


def headers_for(owner: Owner) -> dict[str, str]:
    """Return the headers of a request that acts for an owner, see `web.edge.acting`."""
    headers = {TENANT_HEADER: owner.tenant} if owner.tenant else {}
    return headers if owner.subject is None else {**headers, SUBJECT_HEADER: quote(owner.subject, safe="")}


THE_DEFAULT_TENANT: Final = Owner()
"""The owner of everything, without tenants."""
