from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.types.keys import (
    SEPARATOR,
    ForeignKeyError,
    check_tenant,
    internal_key,
    public_id,
    tenant_of,
)

names = st.text(st.characters(exclude_characters=SEPARATOR, codec="utf-8"))


def test_a_key_of_another_tenant_is_a_programming_error() -> None:
    check_tenant("acme", "acme\x1ft", None)
    check_tenant("", "t", None)
    for tenant, key in (("", "acme\x1ft"), ("acme", "t"), ("acme", "beta\x1ft"), ("a", "ac\x1ft")):
        with pytest.raises(ForeignKeyError):
            check_tenant(tenant, key)


@given(names)
def test_in_the_default_tenant_the_key_is_the_id(name: str) -> None:
    assert internal_key("", name) == name
    assert public_id(name) == name


@given(names, names)
def test_the_id_comes_back(tenant: str, name: str) -> None:
    assert public_id(internal_key(tenant, name)) == name


@given(st.tuples(names, names), st.tuples(names, names))
def test_a_key_belongs_to_one_tenant_and_id(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert (internal_key(*first) == internal_key(*second)) == (first == second)


@pytest.mark.parametrize(("tenant", "name"), [("", f"a{SEPARATOR}b"), (f"a{SEPARATOR}", "b")])
def test_the_separator_is_rejected(tenant: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"U\+001F"):
        internal_key(tenant, name)


@given(names)
def test_a_key_tells_its_tenant_and_its_id(public: str) -> None:
    for tenant in ("", "acme"):
        key = internal_key(tenant, public)
        assert (tenant_of(key), public_id(key)) == (tenant, public)
