"""The house itself: rooms import downwards only, types and lint are clean, nothing of one machine in the tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "appliance"
# Ground floor first; a room may know those before it.
ROOMS = ["host", "config", "keys", "volumes", "tape", "magazines", "changer", "plugins"]
ROOMS += ["storage", "director", "agents", "cli"]


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "appliance" and parts[1] in ROOMS else None


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def test_rooms_import_downwards_only() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        mine = path.relative_to(PACKAGE).parts[0]
        if mine not in ROOMS:
            continue
        for line, module in imports(path):
            other = room_of(module)
            if other is not None and ROOMS.index(other) > ROOMS.index(mine):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_only_the_host_room_talks_to_udev_dbus_and_the_service_manager() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] != "host":
            for line, module in imports(path):
                if module.split(".")[0] in ("pyudev", "dbus_next", "sdnotify", "subprocess"):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "tool", [["mypy"], ["ruff", "check", "."], ["ruff", "format", "--check", "appliance", "tests"]]
)
def test_clean(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_parts_are_valid() -> None:
    folders = (ROOT / "systemd" / "libexec", ROOT / "systemd" / "generators")
    scripts = [*(script for folder in folders for script in folder.iterdir()), ROOT / "autofs" / "auto.magbay"]
    for script in scripts:
        assert script.stat().st_mode & 0o111, f"{script} is not executable"
        done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.complaint(8)
def test_agents_have_no_mount_namespace_of_their_own() -> None:
    """Settings that would hide the mounts of autofs from an agent (systemd.exec(5), sandboxing)."""
    hiding = (
        "Private",
        "Protect",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "BindPaths",
        "RootDirectory",
    )
    apart = ("magbay-check@.service", "magbay-hook@.service")  # these look at one device, or at no disk at all
    for unit in (ROOT / "systemd").glob("magbay-*.service"):
        if unit.name in apart:
            continue
        for line in unit.read_text().splitlines():
            assert not line.startswith(hiding), f"{unit.name}: {line}"
