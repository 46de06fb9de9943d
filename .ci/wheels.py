"""Fill `build/wheels`, from which CI installs without an index: `wheels.py PYTHON...`.

The folder has every locked wheel for these interpreters, and a decoy for every locked package: a newer
release, such as an index can have on any day. An installation that resolves finds the decoys and fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
WHEELS: Final = ROOT / "build" / "wheels"
LOCKS: Final = sorted((ROOT / "requirements").glob("*.txt"))
DECOY: Final = "9999.0"


def download(python: str) -> None:
    """Download what is locked for an interpreter and not there yet, with the pip that comes with it."""
    environment = ROOT / "build" / "download"
    subprocess.run([python, "-m", "venv", "--clear", environment], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    pip += ["--no-deps", "--require-hashes", "--only-binary=:all:", f"--dest={WHEELS}"]
    for lock in LOCKS:
        missing = [pin for pin in re.split(r"\n(?=\w)", lock.read_text("utf-8")) if not is_there(pin)]
        selection = environment / lock.name
        selection.write_text("\n".join(missing), encoding="utf-8")
        subprocess.run([*pip, f"--requirement={selection}"], check=True)


def is_there(pin: str) -> bool:
    """Tell whether a pin has its wheel for every interpreter."""
    name, _, version = pin.partition(" ")[0].partition("==")
    return any(WHEELS.glob(f"{name.replace('-', '_')}-{version}-py*-none-*.whl"))


def add_decoy(name: str) -> None:
    """Write the wheel of a newer release, which has nothing in it but its name."""
    metadata = f"{name.replace('-', '_')}-{DECOY}.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {DECOY}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: decoy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "".join(f"{metadata}/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")),
    }
    with zipfile.ZipFile(WHEELS / f"{name.replace('-', '_')}-{DECOY}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(f"{metadata}/{file}", text)


def main() -> None:
    """Download for each interpreter on the command line, then add the decoys."""
    WHEELS.mkdir(parents=True)
    for python in sys.argv[1:]:
        download(python)
    names = {name for lock in LOCKS for name in re.findall(r"(?m)^([\w.-]+)==", lock.read_text("utf-8"))}
    for name in sorted(names):
        add_decoy(name)
    print(f"{len(list(WHEELS.iterdir()))} wheels, {len(names)} of them decoys")


if __name__ == "__main__":
    main()
