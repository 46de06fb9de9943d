"""Which fields of tasks are written, and how many different statements that takes."""

from __future__ import annotations

import itertools

from llama_deploy.state_stores.records import FIXED, TaskRecord
from llama_deploy.state_stores.sql.queries import MAX_STATEMENTS, Changes, Inserts, Mapper
from llama_deploy.state_stores.sql.tables import tasks
from llama_deploy.testing.records import a_full_task, a_task

NAMES = [name for name in TaskRecord._fields if name not in {"task_id", *FIXED}]
MAPPER = Mapper(TaskRecord, tasks, large=["input", "result"])


def test_statements_are_few_and_what_does_not_differ_is_never_written() -> None:
    changes = Changes(MAPPER, key="task_id", fixed=FIXED)
    task, full = a_task(), a_full_task()
    pairs = itertools.islice(itertools.combinations(NAMES, 2), 2 * MAX_STATEMENTS)
    changed = [(task, task._replace(**{name: getattr(full, name) for name in pair})) for pair in pairs]
    used = {id(statement) for each in changed for statement, _ in changes.statements([each])}
    assert len(used) == MAX_STATEMENTS + 1
    assert list(changes.statements([(task, task)])) == []


def test_rows_are_inserted_in_their_order_by_few_statements() -> None:
    inserts = Inserts(MAPPER)
    nullable = [name for name in NAMES if tasks.c[name].nullable]
    full = a_full_task()
    chosen = itertools.islice(itertools.combinations(nullable, 3), 2 * MAX_STATEMENTS)
    records = [
        a_task(f"t{number}")._replace(**{name: getattr(full, name) for name in names})
        for number, names in enumerate(chosen)
    ]
    found = list(inserts.statements(records))
    assert len({id(statement) for statement, _ in found}) == MAX_STATEMENTS + 1
    assert [row["task_id"] for _, rows in found for row in rows] == [task.task_id for task in records]
