"""`make test`: unit, fuzz and power suite, a real Bacula, VM scenarios, then one plain closing line of counts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]


def suite(name: str, arguments: list[str], report: Path) -> tuple[int, int, int, int]:
    """Run pytest; gives exit status, passed, failed (errors too), skipped."""
    print(f"=== {name}", flush=True)
    command = [sys.executable, "-m", "pytest", *arguments, f"--junit-xml={report}", "-o", "junit_family=xunit2"]
    status = subprocess.run(command, cwd=ROOT).returncode
    if not report.exists():
        return status or 1, 0, 1, 0
    counts = ET.parse(report).getroot().find("testsuite")
    assert counts is not None
    total, skipped = int(counts.get("tests", 0)), int(counts.get("skipped", 0))
    failed = int(counts.get("failures", 0)) + int(counts.get("errors", 0))
    if status and not failed:
        failed = 1  # pytest itself failed: no tests found, an error while collecting
    return status, max(total - skipped - failed, 0), failed, skipped


def main() -> int:
    """Run all; the exit status is 0 only if every part passed and each part ran something."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        results.append(suite("unit suite", ["tests/unit", "-n", "2"], Path(folder) / "unit.xml"))
        results.append(suite("fuzz suite", ["tests/fuzz", "-n", "2"], Path(folder) / "fuzz.xml"))
        results.append(suite("power suite", ["tests/power", "-n", "2"], Path(folder) / "power.xml"))
        results.append(suite("native suite", ["tests/native", "-n", "2"], Path(folder) / "native.xml"))
        print("=== image", flush=True)
        built = subprocess.run(["make", "--no-print-directory", "image"], cwd=ROOT).returncode
        if built:
            results.append((built, 0, 1, 0))
        else:
            results.append(
                suite(
                    "VM scenarios",
                    ["tests/vm", "-m", "vm", "-n", "2", "--dist", "loadfile", "--durations=20"],
                    Path(folder) / "vm.xml",
                )
            )
    passed, failed, skipped = (sum(result[part] for result in results) for part in (1, 2, 3))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or any(result[0] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
