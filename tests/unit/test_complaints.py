"""docs/complaints.md says what is so: each complaint is answered by tests that name it, or is said not to be."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "complaints.md"
NUMBERS = range(1, 29)


def rows() -> dict[int, tuple[str, list[str]]]:
    """Number to the last column and the tests that it names."""
    found = {}
    for line in TABLE.read_text().splitlines():
        if match := re.match(r"\| (\d+) \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 4 and all(cells), line
            found[int(match[1])] = (cells[3], re.findall(r"`([^`]+)`", cells[3]))
    return found


def marked(path: Path) -> dict[str, set[int]]:
    """Name of each test, class and (as "") module in *path* to the complaints that it is marked with."""
    found: dict[str, set[int]] = {"": set()}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inside = [item for item in ast.walk(node) if isinstance(item, ast.FunctionDef | ast.ClassDef)]
            found[node.name] = {number for item in inside for mark in item.decorator_list for number in _numbers(mark)}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "pytestmark":
            found[""] |= {number for item in ast.walk(node.value) for number in _numbers(item)}
    return found


def _numbers(mark: ast.AST) -> list[int]:
    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.complaint":
        return [ast.literal_eval(argument) for argument in mark.args]
    return []


def test_every_complaint_stands_in_the_table_once() -> None:
    assert sorted(rows()) == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_tests_that_the_table_names_exist_and_name_the_complaint(number: int) -> None:
    text, tests = rows()[number]
    assert bool(tests) != (text == "not answerable"), text
    for test in tests:
        file, _, name = test.partition("::")
        found = marked(ROOT / "tests" / file)
        assert number in found[name], f"{test} is not marked with complaint {number}"


def test_no_test_is_forgotten_in_the_table() -> None:
    named = {(number, test) for number, (_text, tests) in rows().items() for test in tests}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name, numbers in marked(path).items():
            test = "::".join(part for part in (str(path.relative_to(ROOT / "tests")), name) if part)
            assert {(number, test) for number in numbers} <= named, test


@pytest.mark.complaint(7)
def test_udev_runs_nothing_of_ours() -> None:
    rules = [path.read_text() for path in (ROOT / "udev").rglob("*.rules")]
    assert rules and not [text for text in rules if re.search(r"\b(?:RUN|PROGRAM|IMPORT\{program\})", text)]


@pytest.mark.complaint(24)
def test_one_file_is_compiled_and_nothing_depends_on_it(tmp_path: Path) -> None:
    """Every file of the product is text; the one that is compiled has a stand-in, which pip installs in its place."""
    for folder in ("appliance", "bin", "systemd", "udev", "autofs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                path.read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "bin").iterdir() if path.suffix == ".c"] == ["magbay-changer.c"]
    subprocess.run([ROOT / "bin" / "compile", tmp_path / "quick"], check=True)
    linked = subprocess.run(["objdump", "-p", tmp_path / "quick"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"NEEDED +(\S+)", linked) == ["libc.so.6"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["magbay-changer"] == scripts["magbay-changer-full"]


@pytest.mark.complaint(25)
def test_the_boot_waits_for_nothing_of_ours() -> None:
    early = ("sysinit.target", "local-fs.target", "local-fs-pre.target", "basic.target", "cryptsetup.target")
    units = [
        path for path in (ROOT / "systemd").rglob("*") if path.suffix in (".service", ".target", ".socket", ".path")
    ]
    assert units
    for path in units:
        for line in path.read_text().splitlines():
            key, _, value = line.partition("=")
            if key in ("Before", "WantedBy", "RequiredBy"):
                assert not set(value.split()) & set(early), f"{path.name}: {line}"
