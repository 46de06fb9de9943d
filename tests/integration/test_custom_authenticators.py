"""Authenticators of other packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.errors import AuthenticationError, ConfigError, PermissionDeniedError
from llama_deploy.web.edge.custom_authenticators import load_authenticator
from tests.integration.test_edge import check_problem, send

BY_PROXY = """
from llama_deploy.types.callers import Caller
from llama_deploy.web.edge.custom_authenticators import CustomAuthenticator

class Thing(CustomAuthenticator):
    async def authenticate(self, scope):
        user = dict(scope["headers"]).get(b"x-user")
        return None if user is None else Caller(user.decode("latin-1"), "", frozenset({"tasks:read"}))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that installs a package with an authenticator of its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(module: str, text: str) -> None:
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8"
        )
        (metadata / "entry_points.txt").write_text(
            f"[llama_deploy.authenticators]\n{module} = {module}:Thing\n", encoding="utf-8"
        )

    return install


async def test_it_is_asked_before_keys(install: Callable[[str, str], None], tmp_path: Path) -> None:
    install("by_proxy", BY_PROXY)
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
        authentication="keys",
        authenticator="by_proxy",
    )
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue,
        ControlPlaneServer(queue.local_queue(), config=config) as server,
    ):
        async with Client(server.config.url, headers={"X-User": "ann"}) as ann:
            assert await ann.core.services.list() == []
            with pytest.raises(PermissionDeniedError):
                await ann.core.sessions.create()
        async with Client(server.config.url) as nobody:
            with pytest.raises(AuthenticationError):
                await nobody.core.services.list()
        async with Client(server.config.url, api_key=server.process_key) as own:
            await own.core.sessions.create()


@pytest.mark.parametrize(
    ("module", "returned"),
    [
        ("raising", "1 / 0"),
        ("pair", "('ann', '')"),
        ("scopes_in_a_text", "Caller('ann', '', 'tasks:readadmin')"),
        ("scopes_of_numbers", "Caller('ann', '', frozenset({1}))"),
        ("no_subject", "Caller('', '', frozenset({'*'}))"),
        ("no_tenant", "Caller('ann', 'a b', frozenset({'*'}))"),
        ("separator", "Caller('ann', 'a\\x1fb', frozenset({'*'}))"),
        ("long_subject", "Caller('a' * 256, '', frozenset({'*'}), is_bound=True)"),
        ("hanging", "await asyncio.sleep(1000)"),
    ],
)
async def test_a_faulty_one_lets_nobody_in_and_stops_no_probe_of_life(
    install: Callable[[str, str], None], tmp_path: Path, module: str, returned: str
) -> None:
    text = BY_PROXY[: BY_PROXY.index("        user")] + f"        return {returned}\n"
    install(module, f"import asyncio\n{text}")
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
        authentication="keys",
        authenticator=module,
    )
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue,
        ControlPlaneServer(queue.local_queue(), config=config) as server,
    ):
        assert (await send(server.config.url, "GET", "/health/live")).status == 200
        if module != "hanging":
            assert (await send(server.config.url, "GET", "/health/ready")).status == 200
            check_problem(await send(server.config.url, "GET", "/services"), 500, "internal_error")


@pytest.mark.parametrize(
    ("module", "text", "words"),
    [
        ("wrong_thing", "Thing = 5", "returns no CustomAuthenticator"),
        ("wrong_class", "class Thing: pass", "returns no CustomAuthenticator"),
        ("wrong_start", "raise RuntimeError('boom')", "boom"),
    ],
)
def test_a_faulty_one_is_named(
    install: Callable[[str, str], None], module: str, text: str, words: str
) -> None:
    install(module, text)
    with pytest.raises(ConfigError, match=words):
        load_authenticator(module)


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="installed are"):
        load_authenticator("nothing")
