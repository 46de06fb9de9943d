"""The clients of 0.5, without a server."""

from __future__ import annotations

import inspect

import pytest

from llama_deploy import types
from llama_deploy.compat import AsyncLlamaDeployClient, LlamaDeployClient
from llama_deploy.types import core


class Config:
    url = "http://elsewhere:1"


def test_the_deprecated_clients_name_their_successor() -> None:
    with pytest.warns(DeprecationWarning, match=r"use llama_deploy\.Client instead"):
        AsyncLlamaDeployClient(Config(), timeout=3)
    with pytest.warns(DeprecationWarning, match=r"use llama_deploy\.SyncClient instead"):
        LlamaDeployClient(Config(), timeout=3)


def test_both_have_the_same_methods() -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(cls).items()
            if not name.startswith("_")
        }

    assert methods(AsyncLlamaDeployClient) == methods(LlamaDeployClient)


@pytest.mark.parametrize("name", core.__all__)
def test_wire_models_have_the_module_of_0_6(name: str) -> None:
    assert getattr(core, name) is getattr(types, name)
