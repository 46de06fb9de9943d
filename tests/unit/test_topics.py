"""Topics: every service name has one, which every broker accepts."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.topics import MAX_PART_LENGTH, Topics, topic_part

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200)
ODD = st.text("ab_ ./:é", min_size=1, max_size=60)


@given(NAMES)
@example("你好" * 100)
@example("a" * 200)
@example("a/b:c d")
def test_a_topic_has_only_what_every_broker_accepts(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", topic_part(name))
    assert len(topic_part(name)) <= MAX_PART_LENGTH


@given(ODD, ODD)
@example("a b", "_a_20b")
@example("a b", "a_20b")
@example("a b c", "a_20b c")
@example("x" * 150 + " a", "x" * 150 + " b")
@example("x" * 121, "x" * 120)
def test_different_names_have_different_topics(one: str, other: str) -> None:
    assert (topic_part(one) == topic_part(other)) == (one == other)


@pytest.mark.parametrize("name", ["echo", "my-service", "my_service", "a.b", "9", "A"])
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert Topics("ns").work(name) == f"ns.{name}"
    assert Topics("ns").instance(name, "i") == f"ns.{name}.i"


def test_a_service_does_not_get_the_dead_letters_of_another() -> None:
    assert Topics("ns").work("echo.dead_letters") != Topics("ns").work("echo") + ".dead_letters"


@given(ODD, ODD, ODD)
@example("echo", "echo._suspects", "i")
@example("echo.x", "echo", "x._suspects")
@example("echo", "echo", "_suspects")
@example("x" * 120, "y" * 120, "z" * 40)
def test_nothing_else_has_the_topic_for_suspects_of_a_service(one: str, other: str, instance: str) -> None:
    topics = Topics("ns")
    suspects = topics.suspects(one)
    assert suspects not in {topics.work(other), topics.instance(other, instance), topics.control_plane}
    assert (suspects == topics.suspects(other)) == (one == other)
    assert len(suspects) <= len("ns.") + MAX_PART_LENGTH + len("._suspects")


@pytest.mark.parametrize("name", ["a b", "a/b", "/", "a:b", "你好", "_x", "-", "a%2Fb", "é", "🙂", "x" * 200])
def test_a_service_may_have_any_name(name: str) -> None:
    assert ServiceDefinition(service_name=name).service_name == name


@pytest.mark.parametrize("name", ["", ".", "..", "a\nb", "a\x00", "\x7f", "x" * 201])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="service name"):
        ServiceDefinition(service_name=name)


@pytest.mark.parametrize("namespace", ["", "x" * 65, "a b", "a/b", "é", "a\n"])
def test_a_namespace_that_a_broker_would_refuse_is_refused_by_the_settings(namespace: str) -> None:
    with pytest.raises(ValueError, match="cannot be a topic namespace: use 1 to 64"):
        ControlPlaneConfig(topic_namespace=namespace)


@pytest.mark.parametrize("namespace", ["x" * 64, "team.alpha-1", "_", "."])
def test_a_namespace_has_what_every_broker_accepts(namespace: str) -> None:
    assert ControlPlaneConfig(topic_namespace=namespace).topic_namespace == namespace
