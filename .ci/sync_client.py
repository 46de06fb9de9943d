"""Generate the client without `await` from the asyncio client; with `--check`, fail if it is out of date.

The translation replaces words, in code, docstrings and comments alike. A source line that ends in
`# asyncio only`, and the lines between `# asyncio only: begin` and `# asyncio only: end`, are left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "src" / "llama_deploy"
GENERATED: Final = {
    f"client/sync/{name}.py": f"client/aio/{name}.py"
    for name in (
        "apiserver",
        "audit",
        "client",
        "core",
        "inbox",
        "keys",
        "server_api",
        "storage",
        "task",
        "task_calls",
        "task_changes",
        "task_collection",
    )
} | {"compat/sync_client.py": "compat/async_client.py"}
"""Generated files and their sources, below the package."""

ASYNCIO_ONLY: Final = re.compile(
    r"(?ms)^ *# asyncio only: begin$.*?# asyncio only: end\n|^[^\n]*# asyncio only\n"
)
WORDS: Final = {
    r"async\s+(?=def|for|with)": "",
    r"await\s+": "",
    r"AsyncGenerator": "Generator",
    r"AbstractAsyncContextManager": "AbstractContextManager",
    r"aclosing": "closing",
    r"__aenter__": "__enter__",
    r"__aexit__": "__exit__",
    r"aio": "sync",
    r"http_connection\b": "sync_http_connection",
    r"HttpConnection\b": "SyncHttpConnection",
    r"Client\b": "SyncClient",
    r"Session\b(?! with id)": "SyncSession",  # the latter is a text of 0.5
    r"TaskHandle\b": "SyncTaskHandle",
    r"Inbox\b": "SyncInbox",
    r"AsyncLlamaDeployClient\b": "LlamaDeployClient",
    r"AsyncSessionClient\b": "SessionClient",
}


def generate(source: str) -> str:
    """Return the text of the module without `await` for a source below the package."""
    text = ASYNCIO_ONLY.sub("", (PACKAGE / source).read_text(encoding="utf-8"))
    for pattern, replacement in WORDS.items():
        text = re.sub(rf"\b{pattern}", replacement, text)
    text = f"# Generated from {source} by `make sync-client`; do not edit.\n{text}"
    return _ruff("format", text=_ruff("check", "--select=I", "--fix", "--exit-zero", "--quiet", text=text))


def _ruff(*arguments: str, text: str) -> str:
    name = f"--stdin-filename={PACKAGE / 'client/sync/generated.py'}"
    command = [sys.executable, "-m", "ruff", *arguments, name, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def main(*, check: bool) -> int:
    """Write the generated files, or with `check` only compare them. Return the exit code."""
    stale = 0
    for target, source in GENERATED.items():
        path, text = PACKAGE / target, generate(source)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            stale = 1
            print(f"{target} is out of date; run `make sync-client`")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {target}")
    return stale


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
