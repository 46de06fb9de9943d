"""Sets up the SDK of OpenTelemetry for `llamactl`, as its usual environment variables say."""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points
from typing import Final

from llama_deploy.tracing import is_active

logger = logging.getLogger(__name__)

_EXPORTERS: Final = "opentelemetry_traces_exporter"
"""The group of entry points in which packages declare exporters."""
_ASKING: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)


def set_up_tracing() -> None:
    """Write traces if a variable asks for it and nothing else is set up. Call it before the parts start.

    `OTEL_TRACES_EXPORTER` names exporters, by default `otlp`; the exporters read their own variables.
    """
    names = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")
    exporters = [name.strip() for name in names if name.strip() not in ("", "none")]
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or not exporters or not any(map(os.environ.get, _ASKING)) or is_active():
        return
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra, and only if it is asked for
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - as above
    except ImportError:
        logger.warning(
            "a variable asks for traces, but the SDK of OpenTelemetry is not installed: the extra `otel`",
            extra={"action": "no_tracing"},
        )
        return
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "llama_deploy"}))
    for name in exporters:
        found = entry_points(group=_EXPORTERS, name=_entry_point(name))
        if not found:
            logger.warning(
                "no package is installed that has the exporter %r of OTEL_TRACES_EXPORTER",
                name,
                extra={"action": "no_exporter"},
            )
        for each in found:
            provider.add_span_processor(BatchSpanProcessor(each.load()()))
    trace.set_tracer_provider(provider)


def _entry_point(name: str) -> str:
    """Return the name under which an exporter is declared."""
    if name != "otlp":
        return name
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if os.environ.get(variable) == "grpc":
            return "otlp_proto_grpc"
    return "otlp_proto_http"
