"""How often a process that serves looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from llama_deploy.deploy.garbage import YOUNG_OBJECTS, seldom_collecting

DEFAULT = (700, 10, 10)
CHOSEN = (50, 5, 5)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_a_server_examines_young_objects_less_often_and_restores_it_at_its_end() -> None:
    gc.set_threshold(*DEFAULT)
    with seldom_collecting():
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
    assert gc.get_threshold() == DEFAULT


def test_the_last_of_several_servers_restores_it() -> None:
    gc.set_threshold(*DEFAULT)
    first, second = seldom_collecting(), seldom_collecting()
    with first:
        second.__enter__()
    assert gc.get_threshold()[0] == YOUNG_OBJECTS
    second.__exit__(None, None, None)
    assert gc.get_threshold() == DEFAULT


def test_what_the_program_has_chosen_stays() -> None:
    gc.set_threshold(*CHOSEN)
    with seldom_collecting():
        assert gc.get_threshold() == CHOSEN
    assert gc.get_threshold() == CHOSEN
