"""Fixtures of the scenarios in the virtual machine: `guest` is a booted appliance of its own for each test."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.harness import Frozen, Guest, Machine, frozen_guest, image_path, upgraded_guest

_FAILED = pytest.StashKey[bool]()
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is marked `vm`, and may take the time of an image build and a boot under emulation."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Remember a failure, so that the fixture can collect what the guest has to say."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="session")
def image() -> Path:
    """The image of this checkout, built when the cache does not have it."""
    missing = [name for name in ("qemu-system-x86_64", "qemu-img") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: run image/install-host-packages")
    return image_path()


@pytest.fixture(scope="session")
def frozen(request: pytest.FixtureRequest) -> Frozen:
    """The booted and frozen guest that scenarios start from; with MAGBAY_VM_QUICK=1 an older one with our package."""
    if os.environ.get("MAGBAY_VM_QUICK") == "1":
        return upgraded_guest()
    return frozen_guest(request.getfixturevalue("image"))


@pytest.fixture
def vm_folder() -> Iterator[Path]:
    """A scratch folder with a short path, for sockets and overlays."""
    with tempfile.TemporaryDirectory(prefix="magbay-vm-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def running(frozen: Frozen, folder: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A running appliance from the frozen one."""
    with frozen.restore(folder) as machine:
        yield from collecting(machine, request)


def collecting(machine: Guest, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Give *machine*; after a failure of the test its journal and state are collected."""
    yield machine
    if request.node.stash.get(_FAILED, False):
        print(f"journal and state of the guest: {machine.collect(request.node.name)}")


@pytest.fixture
def guest(frozen: Frozen, vm_folder: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A running appliance, fresh from the frozen one."""
    with running(frozen, vm_folder, request) as machine:
        yield machine


@pytest.fixture(autouse=True)
def no_machine_left() -> Iterator[None]:
    """A test that leaves a QEMU behind fails."""
    yield
    left = list(Machine.live)
    for machine in left:
        machine.stop()
    assert not left, f"{len(left)} QEMU processes were left running"
