"""What one process may write is what another can read that has done no more than import the workflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "late.py"


def run_program(*arguments: str) -> str:
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "values.json"
    run_program("write", str(path))
    return path


@pytest.fixture(scope="module")
def refused(file: Path) -> dict[str, str]:
    return {
        name: entry["refused"] for name, entry in json.loads(file.read_text()).items() if "refused" in entry
    }


@pytest.fixture(scope="module")
def found(file: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(run_program("read", str(file)))
    return found


def test_what_was_there_at_the_start_is_read_by_another_process(found: dict[str, str]) -> None:
    assert found["subclass"] == "Square(name='s', side=2)"
    assert found["named generic"] == "Box[Square](content=Square(name='s', side=3))"
    assert found["annotated generic"] == "Box[int](content=1)"


def test_a_class_that_appears_later_is_refused_with_what_to_do(refused: dict[str, str]) -> None:
    for name in ("late subclass", "late class itself"):
        assert "Circle, which was not loaded when the service started" in refused[name]
        assert "import it at the top of the module of the workflow" in refused[name]
        assert "allowed_types" in refused[name]


def test_a_generic_that_is_parametrised_later_is_refused_with_what_to_do(refused: dict[str, str]) -> None:
    for name in ("late generic", "late generic of a late class"):
        assert "give it a name in the module of the workflow" in refused[name]
    assert "Box[Shape]" in refused["late generic"]


def test_an_exception_whose_class_appears_later_is_carried_as_a_description(found: dict[str, str]) -> None:
    assert found["late exception"].startswith("DescribedError(")
    assert "LateError" in found["late exception"]


def test_the_data_of_llama_index_is_read_where_no_annotation_speaks_of_it(found: dict[str, str]) -> None:
    for name in ("NodeWithScore", "TextNode", "IndexNode", "Document"):
        assert f"{name}(" in found["nodes"]
    assert "ChatMessage(" in found["message"]
    assert "TextBlock(" in found["message"]


def test_llama_index_is_not_imported_for_who_does_not_use_it() -> None:
    code = (
        "import sys\n"
        "from workflows import Workflow, step\n"
        "from workflows.events import StartEvent, StopEvent\n"
        "class Flow(Workflow):\n"
        "    @step\n"
        "    async def only(self, ev: StartEvent) -> StopEvent: ...\n"
        "from llama_deploy.codec import TypeRegistry, declared_types\n"
        "known = TypeRegistry(declared_types(Flow()))\n"
        "assert known.find('llama_index.core.schema.TextNode') is None\n"
        "assert 'llama_index.core' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
