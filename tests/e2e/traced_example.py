"""Runs the example of `programs/traced.py` over real processes, and collects its spans.

As a program it draws the trace: `python -m tests.e2e.traced_example docs/assets/trace.svg`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.e2e.llamactl import PATIENCE
from tests.e2e.supervised_commands import LONG_LEASE, serving, working

from llama_deploy.testing.conditions import eventually

PROGRAM = Path(__file__).parent / "programs" / "traced.py"


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """A span as the collector has got it."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty: it is the root."""
    name: str
    process: str
    """The `service.name` of its process."""
    start: int
    end: int
    """In nanoseconds since 1970."""
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """The ids of spans."""
    is_error: bool


@dataclass(slots=True)
class Collector:
    """Receives spans over HTTP, as OTLP."""

    spans: list[CollectedSpan] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def running(self) -> Iterator[str]:
        """Listen; yield the URL."""
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            resource = {each.key: each.value.string_value for each in group.resource.attributes}
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        CollectedSpan(
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            name=span.name,
                            process=resource.get("service.name", ""),
                            start=span.start_time_unix_nano,
                            end=span.end_time_unix_nano,
                            attributes={each.key: _value(each.value) for each in span.attributes},
                            links=tuple(each.span_id.hex() for each in span.links),
                            is_error=span.status.code == 2,
                        )
                    )

    def named(self, name: str) -> list[CollectedSpan]:
        """Return the spans with a name, the first that began first."""
        return sorted((each for each in self.spans if each.name == name), key=lambda each: each.start)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


async def run_example(folder: Path, collector: Collector) -> str:
    """Run it: the process of the researcher is killed in its second step. Return what the user has got."""
    shutil.copy(PROGRAM, folder)
    with collector.running() as url:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with serving(folder, env={**_of(env, "control plane"), **LONG_LEASE}, targets=()) as plane:
            desk = working(folder, plane.url, env=_of(env, "desk"), targets=("desk=traced:Desk",))
            researcher = working(
                folder, plane.url, env=_of(env, "researcher"), targets=("researcher=traced:Researcher",)
            )
            with desk, researcher:
                user = await asyncio.create_subprocess_exec(
                    sys.executable,
                    str(PROGRAM),
                    plane.url,
                    env={**os.environ, **_of(env, "user")},
                    cwd=folder,
                    stdout=asyncio.subprocess.PIPE,
                )
                first = folder / "reading-1.txt"
                await eventually(lambda: first.exists() and first.read_text() != "", seconds=2 * PATIENCE)
                await eventually(lambda: bool(collector.named("step find")), seconds=2 * PATIENCE)
                os.kill(int(first.read_text()), signal.SIGKILL)
                await eventually((folder / "reading-2.txt").exists, seconds=2 * PATIENCE)
                (folder / "go.txt").touch()
                async with asyncio.timeout(4 * PATIENCE):
                    told, _ = await user.communicate()
                await eventually(lambda: _is_complete(collector), seconds=2 * PATIENCE)
        return told.decode().strip()


def _of(env: dict[str, str], name: str) -> dict[str, str]:
    return {**env, "OTEL_SERVICE_NAME": name}


def _is_complete(collector: Collector) -> bool:
    """Whether the spans have come that end last, in each process."""
    return bool(
        collector.named("user request")
        and collector.named("attempt desk")
        and len(collector.named("attempt researcher")) >= 2
        and collector.named("accept researcher")
        and len(collector.named("send llama_deploy.researcher")) >= 2
    )


COLORS = {"user": "#6b7280", "control plane": "#2563eb", "desk": "#059669", "researcher": "#d97706"}
LOOKS = (
    'font-family="system-ui, sans-serif" font-size="12" role="img"'
    ' aria-label="A trace: each span is a bar below its parent"'
)
ROW, LEFT, WIDTH = 22, 300, 620


def drawn(spans: Sequence[CollectedSpan]) -> str:
    """Return a trace as an SVG: a bar for each span, below its parent."""
    children: dict[str, list[CollectedSpan]] = {}
    for span in sorted(spans, key=lambda each: each.start):
        children.setdefault(span.parent_id, []).append(span)
    rows: list[tuple[int, CollectedSpan]] = []

    def visit(span: CollectedSpan, depth: int) -> None:
        rows.append((depth, span))
        for child in children.get(span.span_id, []):
            visit(child, depth + 1)

    for root in children.get("", []):
        visit(root, 0)
    begin, end = min(each.start for each in spans), max(each.end for each in spans)
    scale = WIDTH / max(1, end - begin)
    height = ROW * (len(rows) + 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 120} {height}" {LOOKS}>',
        f'<rect width="100%" height="{height}" fill="#ffffff"/>',
    ]
    x = 10
    for name, color in COLORS.items():
        lines.append(f'<rect x="{x}" y="6" width="10" height="10" fill="{color}"/>')
        lines.append(f'<text x="{x + 15}" y="15" fill="#111827">{name}</text>')
        x += 120
    for number, (depth, span) in enumerate(rows):
        y = ROW * (number + 1) + 8
        left, width = LEFT + (span.start - begin) * scale, max(2.0, (span.end - span.start) * scale)
        suffix = f" {span.attributes['llama_deploy.attempt']}" if span.name.startswith("attempt") else ""
        suffix += " (lost)" if span.attributes.get("llama_deploy.lost") else ""
        took = (span.end - span.start) / 1e6
        color = "#dc2626" if span.is_error else COLORS.get(span.process, "#6b7280")
        lines.append(
            f'<text x="{10 + 14 * depth}" y="{y + 12}" fill="#111827">{escape(span.name + suffix)}</text>'
        )
        lines.append(
            f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="15" rx="2" fill="{color}"/>'
            f'<text x="{left + width + 4:.1f}" y="{y + 12}" fill="#6b7280">{took:.1f} ms</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    found = Collector()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run_example(Path(directory), found))
    Path(sys.argv[1]).write_text(drawn(found.spans), encoding="utf-8")
