"""The Debian package: the same bytes from the same inputs, and every file where the system looks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def build(cache: Path) -> Path:
    result = subprocess.run(
        [CHECKOUT / "image/build", "--deb"],
        env={**os.environ, "MAGBAY_CACHE": str(cache), "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("deb"))


def listing(package: Path) -> dict[str, list[str]]:
    lines = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[5]: line.split()[:5] for line in lines}


def test_two_builds_are_the_same_bytes(package: Path, tmp_path: Path) -> None:
    again = build(tmp_path)
    assert again != package and again.read_bytes() == package.read_bytes()


def test_owners_modes_and_times_are_fixed(package: Path) -> None:
    for name, (mode, owner, _, day, _) in listing(package).items():
        assert owner == "root/root", name
        assert mode in ("drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--"), name
        assert day == "2023-11-14", name


def test_every_kind_of_file_is_where_it_belongs(package: Path) -> None:
    names = listing(package)
    expected = {f"./usr/lib/magbay/{path.relative_to(CHECKOUT)}" for path in (CHECKOUT / "appliance").rglob("*.py")}
    for folder, pattern, target in (
        ("udev", "*.rules", "usr/lib/udev/rules.d"),
        ("systemd", "*.service", "usr/lib/systemd/system"),
        ("systemd/libexec", "*", "usr/lib/magbay"),
        ("systemd/generators", "*", "usr/lib/systemd/system-generators"),
        ("systemd/polkit", "*.rules", "usr/share/polkit-1/rules.d"),
        ("systemd/dbus", "*.conf", "usr/share/dbus-1/system.d"),
        ("systemd/catalog", "*.catalog", "usr/lib/systemd/catalog"),
    ):
        expected |= {f"./{target}/{path.name}" for path in (CHECKOUT / folder).glob(pattern)}
    assert expected <= names.keys()
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert names["./usr/bin/magbay"][0] == names["./usr/lib/magbay/auto.magbay"][0] == "-rwxr-xr-x"


def test_configuration_is_a_persons_and_scripts_name_the_agents(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-e", package, tmp_path], check=True)
    assert "/etc/magbay/magbay.yaml" in (tmp_path / "conffiles").read_text().splitlines()
    for name in ("postinst", "prerm", "postrm"):
        script = (tmp_path / name).read_text()
        assert "magbay-media.service" in script and "@" not in script.replace('"$@"', "")
        subprocess.run(["sh", "-n", tmp_path / name], check=True)
    assert "magbay-unlock@" not in (tmp_path / "postinst").read_text()
