"""What errors, logs and reprs show of a URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.web.shown_url import shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("HTTP://Host:8000/path/", "HTTP://Host:8000/path/"),
        ("https://[::1]:8000/path?wait=30&token=s3cret", "https://[::1]:8000/path?wait=***&token=***"),
        ("http://host?s3cret", "http://host?***"),
        ("http://host/path?#s3cret", "http://host/path"),
        ("http://ann:s3cret@host:8000/path", "http://host:8000/path"),
        ("http://ann:s3c@ret/@host/path", "http://host/path"),
        ("http://ann:s3c?ret@host/path", "http://***"),
        ("http://ann:s3c#ret@host/path", "http://***"),
        ("http://host/path?mail=ann@s3cret", "http://***"),
        ("ann:s3cret@host", "host"),
        ("/path?next=http://s3cret", "/path?next=***"),
        ("", ""),
    ],
)
def test_secrets_are_left_out(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(
    secret=st.text(st.characters(exclude_categories=["Cs"])).map("<{}>".format),
    form=st.sampled_from(["http://ann:{}@host/path", "http://host/path?token={}", "http://host/path#{}"]),
)
def test_no_secret_is_shown_whatever_it_contains(secret: str, form: str) -> None:
    assert secret not in shown_url(form.format(secret))
    assert "<" not in shown_url(form.format(secret))
