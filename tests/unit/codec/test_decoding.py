"""Whatever is decoded: a value, or a SerializationError. Nothing is imported, nothing is called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, PrivateAttr
from tests.unit.codec.shapes import DECLARED, Any1, Colour, Open, Pair, Point, Rights, Row, Words, values

from llama_deploy.codec import TypedJson, TypeRegistry
from llama_deploy.codec.decoding import _BUILDERS
from llama_deploy.codec.encoding import TAG
from llama_deploy.codec.type_registry import qualified_name
from llama_deploy.errors import SerializationError


class Twice(Any1):
    @property
    def twice(self) -> int:
        return 2


class RudeKey(BaseModel):
    """Breaks whoever hashes it, as a user's class may when it is built from bad data."""

    name: Any

    def __hash__(self) -> int:
        raise SystemError("no hash of this")


TYPED = TypedJson(TypeRegistry([*DECLARED, RudeKey, Twice]))
NAMES = [qualified_name(cls) for cls in (*DECLARED, RudeKey)]
KINDS = [*_BUILDERS, "model", "dataclass", "enum", "namedtuple", "error", "class", "nonsense"]


def tagged(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what looks like the codec's own."""
    names = st.sampled_from(NAMES) | st.sampled_from(["os.system", "builtins.eval", "ValueError", "x"])
    fields = st.dictionaries(
        st.sampled_from(["held", "x", "y", "left", "_kept", "known", "root", "__class__", "first"]), inner
    )
    part = (
        inner | fields | names | st.lists(inner, max_size=2) | st.sampled_from(["RED", "nan", "2020-01-01"])
    )
    spec = st.builds(lambda kind, parts: [kind, *parts], st.sampled_from(KINDS), st.lists(part, max_size=6))
    named = st.builds(
        lambda kind, name, parts: [kind, name, *parts],
        st.sampled_from(KINDS),
        names,
        st.lists(part, max_size=5),
    )
    return st.builds(lambda value: {TAG: value}, spec | named | part) | st.builds(
        lambda value: {TAG: value, "more": 1}, spec
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | tagged(inner)
    ),
    max_leaves=10,
)


def decoded_or_refused(text: str) -> None:
    try:
        TYPED.loads(text)
    except SerializationError:
        return


@given(JSON | tagged(JSON))
def test_any_json_is_a_value_or_refused(data: Any) -> None:
    decoded_or_refused(json.dumps(data))


@given(values, st.data())
def test_a_damaged_text_is_a_value_or_refused(value: Any, data: st.DataObject) -> None:
    text = TYPED.dumps(value)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    decoded_or_refused(text[:start] + data.draw(st.text(max_size=3)) + text[end:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"$": 1}',
        '{"$": []}',
        '{"$": ["set"]}',
        '{"$": ["set", [[]]]}',
        '{"$": ["tuple", "abc"]}',
        '{"$": ["dict", [["a", 1], ["a", 2]]]}',
        '{"$": ["dict", ["ab"]]}',
        '{"$": ["bytes", "?"]}',
        '{"$": ["decimal", "x"]}',
        '{"$": ["datetime", "now"]}',
        '{"$": ["datetime", "2020-01-01T00:00:00", 7]}',
        '{"$": ["timedelta", 99999999999, 0, 0]}',
        '{"$": ["zone", "../../etc/passwd"]}',
        '{"$": ["float", "1e999"]}',
        '{"$": ["int", "1_0"], "x": 1}',
        '{"$": ["exception", "eval", ["1"]]}',
        '{"$": ["exception", "UnicodeDecodeError", [1]]}',
        '{"$": ["model", "os.system", {}]}',
        json.dumps({TAG: ["set", [{TAG: ["model", qualified_name(RudeKey), {"name": 1}]}]]}),
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"$":["tuple",[' * 20_000 + "]]}" * 20_000,
        "9" * 10_000,
    ],
    ids=lambda text: text[:40],
)
def test_attacks_are_refused(text: str) -> None:
    with pytest.raises(SerializationError):
        TYPED.loads(text)


def test_what_is_no_json_value_is_refused() -> None:
    with pytest.raises(SerializationError, match=r"\$\.a\[0\] is a object, which is not JSON"):
        TYPED.decode({"a": [object()]})


def name_of(cls: type) -> str:
    return qualified_name(cls)


def test_a_field_that_the_class_does_not_have_any_more_is_named() -> None:
    for kind, cls in (("model", Any1), ("dataclass", Point), ("namedtuple", Row)):
        data = {"a": {TAG: [kind, name_of(cls), {"gone": 1, "held": 1}]}}
        with pytest.raises(SerializationError, match=rf"\$\.a holds .*'gone'.*{cls.__name__}") as caught:
            TYPED.decode(data)
        assert caught.value.path == "$.a"


def test_a_private_attribute_that_is_gone_is_named() -> None:
    data = {TAG: ["model", name_of(Any1), {"held": 1}, [], {"_gone": 1}]}
    with pytest.raises(SerializationError, match="'_gone'"):
        TYPED.decode(data)


def test_an_extra_of_a_class_that_takes_none_is_named() -> None:
    data = {TAG: ["model", name_of(Any1), {"held": 1}, [], {}, {"more": 1}]}
    with pytest.raises(SerializationError, match=r"'more'.*does not take extra"):
        TYPED.decode(data)


def test_a_missing_field_gets_its_default() -> None:
    model = TYPED.decode({TAG: ["model", name_of(Any1), {"held": 1}]})
    assert (model.label, model.model_fields_set) == ("none", {"held"})
    point = TYPED.decode({TAG: ["dataclass", name_of(Point), {"x": 1}]})
    assert point == Point(1, [])
    assert TYPED.decode({TAG: ["namedtuple", name_of(Row), {"first": 1}]}) == Row(1, 2)


def test_a_missing_field_without_a_default_is_named() -> None:
    for kind, cls, field in (
        ("model", Any1, "held"),
        ("dataclass", Pair, "left"),
        ("namedtuple", Row, "first"),
    ):
        with pytest.raises(
            SerializationError, match=f"does not hold '{field}', which {cls.__name__} requires"
        ):
            TYPED.decode({TAG: [kind, name_of(cls), {}]})


def test_members_that_are_gone_are_named() -> None:
    with pytest.raises(SerializationError, match="'GREEN', which Colour does not have"):
        TYPED.decode({TAG: ["enum", name_of(Colour), "GREEN"]})
    with pytest.raises(SerializationError):
        TYPED.decode({TAG: ["enum", name_of(Rights), "READ"]})


@pytest.mark.parametrize("attribute", ["__class__", "__dict__", "model_dump", "twice", "held"])
def test_attributes_beyond_the_declared_cannot_hide_what_the_class_has(attribute: str) -> None:
    with pytest.raises(SerializationError, match=f"'{attribute}'"):
        TYPED.decode({TAG: ["model", name_of(Twice), {"held": 1}, [], {}, {}, {attribute: 1}]})


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_module.py").write_text("raise SystemExit('it was imported')\nclass Evil: pass\n")
    (tmp_path / "planted_package").mkdir()
    (tmp_path / "planted_package" / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    for name in ("planted_module.Evil", "planted_package.sub.Evil", "planted_module", "planted_module.Any1"):
        for kind in KINDS:
            decoded_or_refused(json.dumps({TAG: [kind, name, {}]}))
        with pytest.raises(SerializationError):
            TYPED.types.resolve("planted_module.Evil")
    assert not {module for module in set(sys.modules) - before if module.startswith("planted")}


def test_an_unknown_time_zone_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python looks for the data of an unknown zone in the package `tzdata`, and imports what the name says.
    for folder in ("tzdata", "tzdata/zoneinfo", "tzdata/zoneinfo/planted"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [name for name in sys.modules if name.partition(".")[0] == "tzdata"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SerializationError, match=r"the time zone 'planted/zone'"):
        TYPED.decode({TAG: ["zone", "planted/zone"]})
    assert "tzdata.zoneinfo.planted" not in sys.modules


def test_no_constructor_and_no_validator_runs() -> None:
    class Told(BaseModel):
        name: str
        _calls: int = PrivateAttr(default=0)

        def __init__(self, **_: Any) -> None:
            raise AssertionError("it was constructed")

        def model_post_init(self, _: Any, /) -> None:
            raise AssertionError("it was constructed")

    class Pairing(NamedTuple):
        x: int

    typed = TypedJson(TypeRegistry([Told, Pairing]))
    built = typed.decode({TAG: ["model", name_of(Told), {"name": ["not", "a", "string"]}]})
    assert built.name == ["not", "a", "string"]
    assert built._calls == 0


def test_roots_and_open_models_check_their_parts() -> None:
    with pytest.raises(SerializationError):
        TYPED.decode({TAG: ["model", name_of(Words), {"root": []}, [], {"_x": 1}]})
    assert TYPED.decode({TAG: ["model", name_of(Open), {}, [], {}, {"x": 1}]}).x == 1
