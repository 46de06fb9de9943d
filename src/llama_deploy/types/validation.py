"""Descriptions of validation errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError


def describe_validation_error(exc: ValidationError) -> str:
    """Return the errors that pydantic found on one line, each as `field: error`."""
    return describe_findings(exc.errors())


def describe_findings(findings: Iterable[Mapping[str, Any]]) -> str:
    """Describe errors in the format of `errors()` of the exceptions of pydantic and FastAPI."""
    return "; ".join(
        f"{'.'.join(str(part) for part in finding['loc']) or 'value'}: {finding['msg']}"
        for finding in findings
    )
