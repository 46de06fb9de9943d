"""Signatures fit one text, one place and the configured keys, and nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from llama_deploy.codec import Signer
from llama_deploy.errors import ConfigError, SignatureError
from llama_deploy.web.problems import from_problem, to_problem

OLD = SecretStr("an old key of good length")
NEW = b"a new key, as long as it should be"
SIGNER = Signer([NEW])
texts = st.text(st.characters(exclude_categories=()))


@given(texts, texts)
def test_what_was_signed_is_verified(text: str, context: str) -> None:
    SIGNER.verify(text, SIGNER.sign(text, context=context), context=context)


@given(texts, texts, texts, texts)
def test_a_signature_fits_its_text_and_place_only(
    text: str, context: str, other: str, elsewhere: str
) -> None:
    if (text, context) == (other, elsewhere):
        return
    signature = SIGNER.sign(text, context=context)
    with pytest.raises(SignatureError, match="was changed, or was written for another place"):
        SIGNER.verify(other, signature, context=elsewhere)


def test_text_and_place_do_not_run_into_each_other() -> None:
    signature = SIGNER.sign("bc", context="a")
    with pytest.raises(SignatureError):
        SIGNER.verify("c", signature, context="ab")


@given(texts)
def test_forged_signatures_are_refused(forged: str) -> None:
    with pytest.raises(SignatureError):
        SIGNER.verify("text", forged, context="session 1")


def test_what_was_never_signed_is_told_apart() -> None:
    with pytest.raises(
        SignatureError, match="it is not signed: it was stored before this service had keys"
    ) as caught:
        SIGNER.verify("text", "", context="session 1")
    assert caught.value.context == "session 1"


def test_a_changed_signature_is_refused() -> None:
    signature = SIGNER.sign("text", context="session 1")
    for index in range(len(signature)):
        changed = signature[:index] + ("A" if signature[index] != "A" else "B") + signature[index + 1 :]
        with pytest.raises(SignatureError) as caught:
            SIGNER.verify("text", changed, context="session 1")
        assert caught.value.context == "session 1"


def test_keys_are_rotated() -> None:
    before, between, after = Signer([OLD]), Signer([NEW, OLD]), Signer([NEW])
    old, new = before.sign("x", context="c"), between.sign("x", context="c")
    between.verify("x", old, context="c")
    between.verify("x", new, context="c")
    after.verify("x", new, context="c")
    with pytest.raises(SignatureError, match="a key that is not configured"):
        after.verify("x", old, context="c")
    with pytest.raises(SignatureError):
        before.verify("x", new, context="c")


def test_the_form_of_a_signature_is_stable() -> None:
    signature = Signer([b"0123456789abcdef"]).sign("text", context="place")
    assert signature == "1dc21fe4.N_WQ8ftl0KmMW-yDkh6lNyXZxsd6XcBuspVXPKSnmys"


@pytest.mark.parametrize("keys", [[], [b""], [b"short"], [NEW, SecretStr("short")]])
def test_keys_that_protect_nothing_are_refused(keys: list[SecretStr | bytes]) -> None:
    with pytest.raises(ConfigError, match="key"):
        Signer(keys)


def test_keys_are_never_shown() -> None:
    signer = Signer([OLD, NEW])
    for text in (repr(signer), str(signer), signer.sign("x", context="c")):
        assert "key of good" not in text
        assert "a new key" not in text


def test_the_error_travels() -> None:
    problem = to_problem(SignatureError("no", context="c"))
    assert problem["status"] == 500
    error = from_problem(500, json.dumps(problem).encode(), url="http://x")
    assert isinstance(error, SignatureError)
    assert not error.retriable
    assert error.context == "c"
