"""Queues and stores of other packages, which may be faulty."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from llama_deploy.errors import ConfigError
from llama_deploy.message_queues import AbstractMessageQueue, LocalMessageQueue, MessageQueueConfig
from llama_deploy.message_queues.queue_registry import config_from_url
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types.extras import load_entry_point


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that installs a package, with one entry point for a queue and a store each."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(module: str, text: str) -> None:
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        head = f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n"
        (metadata / "METADATA").write_text(head, encoding="utf-8")
        point = f"{module.replace('_', '-')} = {module}:Thing"
        points = f"[llama_deploy.message_queues]\n{point}\n[llama_deploy.state_stores]\n{point}\n"
        (metadata / "entry_points.txt").write_text(points, encoding="utf-8")

    return install


@pytest.mark.parametrize(
    ("module", "text", "words"),
    [
        ("bad_syntax", "def (", "SyntaxError: "),
        ("bad_name", "Other = 1", "AttributeError: "),
        ("bad_start", "raise RuntimeError('boom\\nboom')", "RuntimeError: boom boom"),
        ("bad_thing", "Thing = 5", "is not a "),
    ],
)
async def test_a_faulty_package_is_named(install: Any, module: str, text: str, words: str) -> None:
    install(module, text)
    uri = f"{module.replace('_', '-')}://ann:secret@host"
    with pytest.raises(ConfigError, match=words) as queue:
        config_from_url(uri)
    with pytest.raises(ConfigError, match=words) as store:
        await open_state_store(uri)
    for refused in (queue, store):
        told = str(refused.value)
        assert f"the entry point '{module}:Thing' of the package '{module}'" in told
        assert "secret" not in told
        assert "\n" not in told


async def test_a_package_that_lacks_another_says_what_to_install(install: Any) -> None:
    install("bad_import", "import not_there_at_all")
    words = "not_there_at_all.*pip install 'bad_import'"
    with pytest.raises(ConfigError, match=words):
        config_from_url("bad-import://host")
    with pytest.raises(ConfigError, match=words):
        await open_state_store("bad-import://host")


def test_a_queue_of_this_package_says_what_to_install_in_the_clone() -> None:
    entry_point = EntryPoint("redis", "not_there_at_all:Thing [redis]", "llama_deploy.message_queues")

    with pytest.raises(ConfigError, match=r"in your clone of llama_deploy, run: pip install '\.\[redis\]'"):
        load_entry_point(entry_point, what="message queue")


class ThirdPartyConfig(MessageQueueConfig):
    model_config = SettingsConfigDict(env_prefix="THIRD_PARTY_QUEUE_")
    credential_fields: ClassVar[frozenset[str]] = frozenset({"username", "password", "token"})
    type: Literal["third_party"] = "third_party"
    url: str = "third://host"
    username: str | None = None
    password: SecretStr | None = None
    token: str | None = None

    async def connect(self) -> AbstractMessageQueue:
        return await LocalMessageQueue.start()


def test_what_a_backend_names_as_a_credential_is_not_public() -> None:
    config = ThirdPartyConfig(username="ann", password=SecretStr("secret"), token="hush")
    assert config.public_settings() == {"type": "third_party", "url": "third://host"}
    assert config.private_settings().keys() == {"username", "password", "token"}
