"""Steps of the schema only add, so that two releases can work on one database during a rolling upgrade."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_deploy.state_stores import migrations

STEPS = sorted((Path(migrations.__file__).parent / "versions").glob("[!_]*.py"))
ADDING = {"create_table", "create_index", "add_column", "get_bind"}
CHANGING = ("ALTER ", "DELETE ", "DROP ", "REPLACE ", "TRUNCATE ", "UPDATE ")
"""How statements begin that a step must not send by itself. What a trigger does stands within another one."""


def operations(source: str) -> Iterator[ast.Call]:
    """Yield the operations of a step."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "op"
        ):
            yield node


def breaking(source: str) -> list[str]:
    """Return what a step does that a running control plane of the release before it cannot bear."""
    found = []
    for call in operations(source):
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr not in ADDING:
            found.append(call.func.attr)
        elif call.func.attr == "add_column":
            column = call.args[1]
            assert isinstance(column, ast.Call)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in column.keywords}
            if given.get("nullable") == "False" and "server_default" not in given:
                found.append("add_column without a default")
        elif call.func.attr == "create_index" and "unique=True" in ast.unparse(call):
            found.append("create_index that is unique")
    return found + [text for text in texts(source) if text.upper().startswith(CHANGING)]


def texts(source: str) -> Iterator[str]:
    """Yield the texts in a step."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.strip()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.stem)
def test_a_step_only_adds(step: Path) -> None:
    assert list(operations(step.read_text()))
    assert not breaking(step.read_text())


@pytest.mark.parametrize(
    "change",
    [
        "op.drop_column('tasks', 'token')",
        "op.drop_table('tasks')",
        "op.drop_index('ix_tasks_queued')",
        "op.alter_column('tasks', 'token', type_=sa.Integer())",
        "op.rename_table('tasks', 'jobs')",
        "op.execute('UPDATE tasks SET token = NULL')",
        "op.get_bind().exec_driver_sql(' update tasks SET token = NULL')",
        "op.get_bind().exec_driver_sql('DROP INDEX ix_tasks_queued')",
        "op.add_column('tasks', sa.Column('x', sa.Text(), nullable=False))",
        "op.create_index('ix', 'tasks', ['x'], unique=True)",
    ],
)
def test_a_step_that_does_more_is_found(change: str) -> None:
    assert breaking(change)


def test_every_revision_follows_the_one_before() -> None:
    revisions = [step.stem.partition("_")[0] for step in STEPS]
    assert revisions == sorted(revisions)
    assert revisions[-1] == migrations.SCHEMA_REVISION
