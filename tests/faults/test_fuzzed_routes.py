"""Every route of a control plane that holds data is tried with all that its document allows and forbids."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import AcceptedNegativeData, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.faults.conftest import System, errors_in
from tests.faults.fuzz_data import SERVICE, SPARE, Known, fill
from tests.faults.test_memory import peak_mib
from tests.figures import Tell

SHORT_SEED: Final = 20261130
SHORT_SECONDS: Final = 15.0
SECONDS_A_MINUTE: Final = 60.0
MINUTES: Final = float(os.environ.get("FAULT_MINUTES", "10"))
EXAMPLES: Final = 8
"""Cases of each kind for each route in one round."""
MAX_MIB: Final = 400.0
REQUEST_SECONDS: Final = 30.0

CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

Case: TypeAlias = schemathesis.Case[Any]


_BREACH: Final = re.compile(r"violates .*")
_KIND: Final = "(?:integer|number|boolean|string|null|array)"
_CONVERSION: Final = re.compile(
    rf"violates `type` at /properties/([^/ ]+)\S* \(was {_KIND}, became {_KIND}\)"
)


def is_conversion(text: str, query: Mapping[str, Any]) -> bool:
    """Tell whether what was accepted breaks the schema only until it is written into a query.

    There, numbers are texts, and a list of one item is the item. Nothing in a body is converted.
    """
    told, _, _ = text.partition("curl")
    breaches = list(map(_CONVERSION.fullmatch, _BREACH.findall(told)))
    return (
        "in body" not in told
        and bool(breaches)
        and all(breach is not None and _is_one_text(query.get(breach[1])) for breach in breaches)
    )


def _is_one_text(value: object) -> bool:
    return not isinstance(value, list) or len(value) <= 1


class Fuzzer:
    """Tries all routes, and keeps what does not conform, once for each kind."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.known = Known()
        self.cases: Counter[str] = Counter()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.found: dict[tuple[str, str], str] = {}
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._session = requests.Session()
        schema = schemathesis.openapi.from_url(f"{system.url}/openapi.json")
        results = list(schema.get_all_operations())
        assert all(isinstance(result, Ok) for result in results), results
        self.operations = [result.ok() for result in results if isinstance(result, Ok)]

    def run(self, *, seconds: float) -> None:
        """Go round the routes: once, and until the time is over."""
        deadline = time.monotonic() + seconds
        for number in self._rounds(deadline):
            asyncio.run(self._fill())
            for operation in self._chance.sample(self.operations, len(self.operations)):
                if number and time.monotonic() > deadline:
                    return
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    self._try(operation, mode)

    @staticmethod
    def _rounds(deadline: float) -> Iterator[int]:
        number = 0
        while not number or time.monotonic() < deadline:
            yield number
            number += 1

    async def _fill(self) -> None:
        async with self.system.client() as client:
            await self.system.instances(client, 1, SERVICE)
            await fill(client, self.known)

    def _try(self, operation: Any, mode: GenerationMode) -> None:
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Case) -> None:
            self._check(case, mode)

        check._hypothesis_internal_use_seed = self._chance.randrange(2**31)  # type: ignore[attr-defined]
        try:
            check()
        except Unsatisfiable:  # nothing about the route can be wrong
            assert mode is GenerationMode.NEGATIVE, operation.label

    def _check(self, case: Case, mode: GenerationMode) -> None:
        label = case.operation.label
        changed = self._chance.random() < 0.5 and self._use_known(case)
        if self._end_stream(case):
            changed = True
        checks = list(CHECKS)
        try:
            response = case.call(session=self._session, timeout=REQUEST_SECONDS)
        except requests.RequestException as exc:
            self._note(case, type(exc).__name__, str(exc))
            return
        self.cases[label] += 1
        self.statuses[label, response.status_code] += 1
        if (problem := self._problem_of(response)) is not None:
            self._note(case, "problem", problem)
        # The check does not know all statuses that refuse a request, such as 431.
        if mode is GenerationMode.NEGATIVE and not changed and response.status_code < 400:
            checks.append(negative_data_rejection)
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                if not (
                    isinstance(failure, AcceptedNegativeData)
                    and is_conversion(str(failure), case.query or {})
                ):
                    self._note(case, type(failure).__name__, str(failure))

    @staticmethod
    def _problem_of(response: Response) -> str | None:
        if response.status_code < 400:
            return None
        (kind, *_) = response.headers.get("content-type", [""])
        if kind != "application/problem+json":
            return f"{response.status_code} of {kind or 'no type'}: {response.content[:200]!r}"
        problem = response.json()
        if problem.get("status") != response.status_code or not problem.get("detail"):
            return f"{response.status_code}: {problem}"
        return None

    def _note(self, case: Case, kind: str, text: str) -> None:
        self.found.setdefault((case.operation.label, kind), f"{text}\n{case.as_curl_command()}"[:3000])

    def _use_known(self, case: Case) -> bool:
        """Put values that exist in the place of those that the schema made; tell whether there are any."""
        values = self.known.choose(self._chance)
        if case.path == "/services/deregister":
            values["service_name"] = SPARE
        changed = False
        for location in ("path_parameters", "query", "body"):
            given = getattr(case, location)
            if not isinstance(given, dict) or (case.method == "GET" and location == "body"):
                continue
            replaced = {name: values[name] for name in given if name in values}
            if replaced:
                setattr(case, location, {**given, **replaced})
                changed = True
        body = self._fitting_body(case)
        if body is not None:
            case.body = body
            changed = True
        if case.path == "/sessions/{session_id}/state" and case.method in {"POST", "PUT"}:
            case.headers["If-Match"] = self._chance.choice(['"0"', '"1"', '"2"'])
            changed = True
        return changed

    def _fitting_body(self, case: Case) -> dict[str, Any] | None:
        """Return a body that a schema is too general for, in half of the cases of such routes."""
        if case.method != "POST" or self._chance.random() < 0.5:
            return None
        reply = {"text": "yes"}
        event = {"__is_pydantic": True, "value": reply, "qualified_name": "__main__.Reply"}
        bodies: dict[str, dict[str, Any]] = {
            "/tasks/import": self._chance.choice(self.known.exports),
            "/inbox/{question_id}/answer": {"event": reply},
            "/callbacks/{token}": reply,
            "/tasks/{task_id}/events": {"event_obj_str": json.dumps(event)},
            "/tasks/{task_id}/retry": {"from": self._chance.choice(["start", "last_step"])},
            "/sessions/{session_id}/tasks": {"input": "{}", "agent_id": SERVICE},
        }
        return bodies.get(case.path)

    def _end_stream(self, case: Case) -> bool:
        """Have the response end: nothing is waited for, and a task ends before its stream is read."""
        query = dict(case.query or {})
        if "wait" in query or case.path == "/events":
            case.query = {**query, "wait": 0}
            return True
        if case.method == "GET" and case.path in {
            "/tasks/{task_id}/events",
            "/sessions/{session_id}/tasks/{task_id}/result_stream",
        }:
            task_id = str((case.path_parameters or {}).get("task_id"))
            url = f"{self.system.url}/tasks/{quote(task_id, safe='')}"
            self._session.post(f"{url}/cancel", timeout=REQUEST_SECONDS)
            self._session.get(url, params={"wait": "10"}, timeout=REQUEST_SECONDS)
        return False


async def fuzz(system: System, tell: Tell, *, seed: int, seconds: float) -> None:
    """Try the routes of a control plane with a service, and check answers, log and memory."""
    core = system.start("core.py")
    system.start(
        "fuzzed.py",
        LLAMA_DEPLOY_WF_SERVICE_SERVICE_NAME=SERVICE,
        LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="100",
    )
    async with system.client() as client:
        await system.instances(client, 1, SERVICE)
    fuzzer = await asyncio.to_thread(Fuzzer, system, seed)
    await asyncio.to_thread(fuzzer.run, seconds=seconds)
    for label, count in sorted(fuzzer.cases.items()):
        statuses = {status: n for (of, status), n in sorted(fuzzer.statuses.items()) if of == label}
        tell(f"cases of {label}, seed {seed}: {count}, by status {statuses}")
    tell(f"cases of all routes, seed {seed}: {fuzzer.cases.total()}; peak {peak_mib(core.pid):.0f} MiB")
    log = core.text
    report = "\n\n".join(f"{label}: {kind}: {text}" for (label, kind), text in fuzzer.found.items())
    assert not fuzzer.found, report
    assert "Traceback" not in log
    assert not errors_in(log)
    assert peak_mib(core.pid) < MAX_MIB
    assert set(fuzzer.cases) == {operation.label for operation in fuzzer.operations}


@pytest.mark.faults
async def test_all_routes(system: System, tell: Tell) -> None:
    await fuzz(system, tell, seed=SHORT_SEED, seconds=SHORT_SECONDS)


@pytest.mark.long
@pytest.mark.timeout(MINUTES * SECONDS_A_MINUTE + 300)
async def test_all_routes_for_long(system: System, tell: Tell) -> None:
    """Minutes and seed come from `FAULT_MINUTES` and `FAULT_SEED`."""
    seed = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 2**31)  # noqa: S311 - no secret
    await fuzz(system, tell, seed=seed, seconds=MINUTES * SECONDS_A_MINUTE)
