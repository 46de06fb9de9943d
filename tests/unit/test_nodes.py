"""Documents and nodes of llama_index that arrive as JSON."""

from __future__ import annotations

from typing import Any, ClassVar

from llama_index.core.schema import NodeWithScore, TextNode

from llama_deploy.portability.nodes import with_nodes


class CountedNode(TextNode):
    """Counts how often its name is asked for, which happens once for each look at the loaded classes."""

    looks: ClassVar[int] = 0

    @classmethod
    def class_name(cls) -> str:
        cls.looks += 1
        return "CountedNode"


def as_json(text: str, *, class_name: str = "CountedNode") -> dict[str, Any]:
    return {"class_name": class_name, "id_": text, "text": text}


def test_nodes_at_any_depth_are_objects_of_their_classes() -> None:
    scored = {"class_name": "NodeWithScore", "node": as_json("sea"), "score": 0.5}
    found = with_nodes({"found": [scored, as_json("sky", class_name="TextNode")], "count": 2})
    first, second = found["found"]
    assert found["count"] == 2
    assert type(first) is NodeWithScore
    assert type(first.node) is CountedNode
    assert type(second) is TextNode


def test_what_only_looks_like_a_node_stays_as_it_is() -> None:
    values = [
        {"class_name": "Unknown", "text": "t"},
        {"class_name": ["TextNode"]},
        {"class_name": "TextNode", "metadata": 3},
        "TextNode",
    ]
    assert with_nodes(values) == values


def test_the_loaded_classes_are_looked_at_once_for_all_nodes_of_a_value() -> None:
    CountedNode.looks = 0
    assert len(with_nodes([as_json(str(n)) for n in range(20)])) == 20
    assert CountedNode.looks == 1


def test_a_value_without_nodes_costs_no_look_at_the_classes() -> None:
    CountedNode.looks = 0
    assert with_nodes({"answer": ["yes"]}) == {"answer": ["yes"]}
    assert CountedNode.looks == 0


def test_a_class_that_is_defined_after_the_first_nodes_have_arrived_is_found() -> None:
    sent = as_json("late", class_name="LateNode")
    assert with_nodes(sent) == sent

    class LateNode(TextNode):
        @classmethod
        def class_name(cls) -> str:
            return "LateNode"

    assert type(with_nodes(sent)) is LateNode
