"""How to reach a server: what the settings accept, and what their errors show."""

from __future__ import annotations

import base64
import copy
import ssl
import traceback
from dataclasses import replace
from typing import Any

import pytest

from llama_deploy.errors import ConfigError
from llama_deploy.message_queues.simple import SimpleMessageQueue, SimpleMessageQueueConfig
from llama_deploy.web.connection_settings import DEFAULT_TIMEOUT, ConnectionSettings

URL = "https://127.0.0.1:1"


def settings(**kwargs: Any) -> ConnectionSettings:
    read, rest = ConnectionSettings.from_client_kwargs(URL, {**kwargs, "trust_env": True})
    assert rest == {"trust_env": True}
    return read


def test_client_arguments_become_settings() -> None:
    assert settings() == ConnectionSettings(urls=[URL])
    assert settings(verify=False, headers={"A": "b"}, timeout=3) == ConnectionSettings(
        urls=[URL], verify_tls=False, headers={"A": "b"}, timeout=3.0
    )
    assert settings(verify="ca.pem", cert=["c.pem", "k.pem"]) == ConnectionSettings(
        urls=[URL], ca="ca.pem", client_certificate=("c.pem", "k.pem")
    )


def test_a_tls_context_is_used_as_it_is() -> None:
    context = ssl.create_default_context()
    assert settings(verify=context).tls_context() is context
    with pytest.raises(ConfigError, match="tls replaces ca and verify_tls"):
        ConnectionSettings(urls=[URL], tls=context, verify_tls=False)


def test_one_file_may_hold_the_certificate_and_its_key() -> None:
    assert settings(cert="both.pem").client_certificate == ("both.pem", "both.pem")


def test_no_timeout_is_longer_than_any_answer() -> None:
    assert settings(timeout=None).timeout > 1e6 * DEFAULT_TIMEOUT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verify", None),
        ("verify", 1),
        ("cert", 7),
        ("cert", ("certificate.pem", "key.pem", "password")),
        ("cert", ("certificate.pem", None)),
        ("timeout", "soon"),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("timeout", True),
        ("headers", 7),
        ("headers", {"a": 7}),
    ],
)
async def test_an_argument_that_cannot_be_used_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        settings(**{name: value})
    with pytest.raises(ConfigError, match=f"{name} must be "):
        await SimpleMessageQueue.connect(SimpleMessageQueueConfig(client_kwargs={name: value}))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("user:S3cret@host:8000", "http://"),
        ("https://user:S3/cret@host:8000", "percent-encode"),
        ("https://user:3/S3cret@host:8000", "percent-encode"),
        ("https://user:S3?cret@host:8000", "percent-encode"),
        ("https://user:S3#cret@host:8000", "percent-encode"),
        ("https://us%3Aer:S3cret@host:8000", "colon"),
        ("https://user:S3cret%0A@host:8000", "control characters"),
        ("https://user:S3cret@host:port", "port"),
        ("https://user:S3cret@", "a host"),
        ("http://host:8000/?token=S3cret", "query"),
        ("http://host:8000/#S3cret", "fragment"),
        ("S3cret", "http://"),
        ("ftp://S3cret", "http://"),
        ("http://S3cret:port", "port"),
        ("http://S3cret:0", "port"),
        ("http://[S3cret", "malformed"),
    ],
)
def test_a_url_that_cannot_be_used_is_described_and_not_shown(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        ConnectionSettings(urls=[url])
    assert "s3cret" not in "".join(traceback.format_exception(refused.value)).lower()


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        ("user:S3cret@", "user:S3cret"),
        ("user:S3%2Fcr%40et@", "user:S3/cr@et"),
        ("user:S3cr@et@", "user:S3cr@et"),
        ("Zoë:S3crét@", "Zoë:S3crét"),
        (":S3cret@", ":S3cret"),
        ("S3cret@", "S3cret:"),
    ],
)
def test_credentials_in_a_url_become_basic_authorization(credentials: str, sent: str) -> None:
    one = ConnectionSettings(urls=[f"https://{credentials}host:8000/path/", "http://other"])
    assert list(one.urls) == ["https://host:8000/path", "http://other"]
    encoded = base64.b64encode(sent.encode()).decode()
    assert one.headers_for(one.urls[0]) == {"Authorization": f"Basic {encoded}"}
    assert one.headers_for(one.urls[1]) == {}
    copies = [one, replace(one, timeout=1), copy.deepcopy(one)]
    for each in copies:
        assert each.headers_for(each.urls[0]) == one.headers_for(one.urls[0])
        assert "S3" not in f"{each} {each!r} {each.urls[0]}"


def test_credentials_and_an_authorization_header_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="credentials, and there is also an API key") as refused:
        ConnectionSettings(urls=["https://user:S3cret@host"], headers={"authorization": "Bearer S3cret"})
    assert "S3cret" not in str(refused.value)


@pytest.mark.parametrize("value", ["S3cret\n", "S3\rcret", "S3\x00cret", "S3crét"])
def test_a_header_that_http_cannot_carry_is_named_and_not_shown(value: str) -> None:
    with pytest.raises(ConfigError, match=r"the header 'X-Key' .* one line") as refused:
        ConnectionSettings(urls=[URL], headers={"X-Key": value})
    assert "S3" not in str(refused.value)
