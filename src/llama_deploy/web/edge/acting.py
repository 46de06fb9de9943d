"""Requests that act for another owner: those of operators, and those of steps for the owner of their task."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import unquote

from starlette.types import Scope

from llama_deploy.errors import InvalidRequestError, PermissionDeniedError
from llama_deploy.types.callers import AccessScope, Caller
from llama_deploy.types.owners import OWNER_HEADERS, SUBJECT_HEADER, TENANT_HEADER, is_subject, is_tenant


def acting_for(caller: Caller, scope: Scope) -> Caller:
    """Return the caller as the headers of a request say: in another tenant, or bound to a subject.

    Raises:
        PermissionDeniedError: The caller may not act for this owner.
        InvalidRequestError: A header is repeated, or not the name of a tenant or a subject.
    """
    sent = [(name, value) for name, value in scope["headers"] if name in OWNER_HEADERS]
    if not sent:
        return caller
    tenants, subjects = ([value for name, value in sent if name == each] for each in OWNER_HEADERS)
    tenant = _only(tenants, TENANT_HEADER) if tenants else caller.tenant
    subject = unquote(_only(subjects, SUBJECT_HEADER)) if subjects else None
    if tenants and not is_tenant(tenant):
        raise InvalidRequestError(f"{TENANT_HEADER} is not the name of a tenant")
    if subject is not None and not is_subject(subject):
        raise InvalidRequestError(f"{SUBJECT_HEADER} is not the name of a subject")
    if not may_act(caller):
        raise PermissionDeniedError(
            f"only keys of the default tenant with the scope {AccessScope.ADMIN} or"
            f" {AccessScope.SERVICES_HOST} may send {TENANT_HEADER} or {SUBJECT_HEADER}; leave it out",
            scope=AccessScope.ADMIN,
        )
    if subject is None:
        return replace(caller, tenant=tenant, acted_by=caller.subject)
    return replace(caller, tenant=tenant, subject=subject, is_bound=True, acted_by=caller.subject)


def may_act(caller: Caller) -> bool:
    """Whether a caller may act for other owners."""
    is_trusted = caller.may_do_all or AccessScope.SERVICES_HOST in caller.scopes
    return is_trusted and caller.is_in_default_tenant and caller.resource is None


def _only(values: list[bytes], name: str) -> str:
    if len(values) > 1:
        raise InvalidRequestError(f"{name} is sent more than once")
    return values[0].decode("latin-1")
