"""Words for what pydantic finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError


def describe_validation_error(exc: ValidationError) -> str:
    """Return pydantic's findings on one line, each as `field: what is wrong`."""
    return describe_findings(exc.errors())


def describe_findings(findings: Iterable[Mapping[str, Any]]) -> str:
    """The same for findings as `errors()` of pydantic's and FastAPI's exceptions returns them."""
    return "; ".join(
        f"{'.'.join(str(part) for part in finding['loc']) or 'value'}: {finding['msg']}"
        for finding in findings
    )
