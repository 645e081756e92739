"""The Debian package magbay, built with dpkg-deb from the checkout; the same inputs give the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from builder.common import CHECKOUT, IMAGE, BuildError, hash_of, run, step

DEBIAN = IMAGE / "debian"

# Where files of the checkout go: glob, target directory, mode. A glob without a match is fine.
FILES = (
    ("image/debian/bin/*", "usr/bin", 0o755),
    ("udev/*.rules", "usr/lib/udev/rules.d", 0o644),
    ("udev/*.hwdb", "usr/lib/udev/hwdb.d", 0o644),
    ("systemd/*.service", "usr/lib/systemd/system", 0o644),
    ("systemd/*.socket", "usr/lib/systemd/system", 0o644),
    ("systemd/*.target", "usr/lib/systemd/system", 0o644),
    ("systemd/*.timer", "usr/lib/systemd/system", 0o644),
    ("systemd/*.path", "usr/lib/systemd/system", 0o644),
    ("systemd/*.slice", "usr/lib/systemd/system", 0o644),
    ("systemd/preset/*.preset", "usr/lib/systemd/system-preset", 0o644),
    ("systemd/sysusers/*.conf", "usr/lib/sysusers.d", 0o644),
    ("systemd/tmpfiles/*.conf", "usr/lib/tmpfiles.d", 0o644),
    ("systemd/polkit/*.rules", "usr/share/polkit-1/rules.d", 0o644),
    ("systemd/dbus/*.conf", "usr/share/dbus-1/system.d", 0o644),
    ("systemd/dbus/*.service", "usr/share/dbus-1/system-services", 0o644),
    ("systemd/catalog/*.catalog", "usr/lib/systemd/catalog", 0o644),
    ("systemd/generators/*", "usr/lib/systemd/system-generators", 0o755),
    ("systemd/libexec/*", "usr/lib/magbay", 0o755),
    ("systemd/magbay.yaml", "etc/magbay", 0o644),
    ("autofs/*.autofs", "etc/auto.master.d", 0o644),
    ("autofs/auto.*", "usr/lib/magbay", 0o755),
    ("README.md", "usr/share/doc/magbay", 0o644),
    ("docs/*.md", "usr/share/doc/magbay", 0o644),
    ("image/debian/copyright", "usr/share/doc/magbay", 0o644),
)
# The quick half of the Changer Command is compiled into the place of this file.
QUICK = ("bin/compile", "usr/bin/magbay-changer")
# What the package is made of; a commit that touches nothing of it leaves the package as it was.
INPUTS = ("appliance", "bin", "udev", "systemd", "autofs", "image/debian", "docs", "README.md")


def depends() -> list[str]:
    """Names of the packages that magbay depends on or recommends, without version bounds."""
    text = re.sub(r"\n[ \t]+", " ", (DEBIAN / "control").read_text())
    fields = re.findall(r"^(?:Depends|Recommends): (.*)$", text, re.MULTILINE)
    return sorted({word.split()[0] for field in fields for word in field.split(",")})


def version() -> str:
    """Version by the first line of the Debian changelog."""
    match = re.match(r"magbay \(([^)]+)\)", (DEBIAN / "changelog").read_text())
    if match is None:
        raise BuildError(f"{DEBIAN / 'changelog'} does not begin with a version.")
    return match[1]


def source_date_epoch() -> int:
    """Seconds since 1970 of the last commit that touched the package; `SOURCE_DATE_EPOCH` where there is no git."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    command = ["git", "-C", str(CHECKOUT), "-c", f"safe.directory={CHECKOUT}", "log", "-1", "--format=%ct", "--"]
    result = subprocess.run([*command, *INPUTS], capture_output=True, text=True, check=False)
    if result.returncode == 0 and result.stdout.strip():
        return int(result.stdout)
    return int((DEBIAN / "changelog").stat().st_mtime)


def contents() -> Iterator[tuple[Path, str, int]]:
    """Every file of the package: source, path on the target, mode."""
    for source in sorted((CHECKOUT / "appliance").rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            yield source, f"usr/lib/magbay/{source.relative_to(CHECKOUT)}", 0o644
    for pattern, directory, mode in FILES:
        for source in sorted(CHECKOUT.glob(pattern)):
            if source.is_file():
                yield source, f"{directory}/{source.name}", mode


def key() -> str:
    """Changes when the package would."""
    listing = "".join(f"{target} {mode:o} {hash_of(source)}\n" for source, target, mode in contents())
    return hash_of(listing, CHECKOUT / "bin", DEBIAN, Path(__file__), architecture(), str(source_date_epoch()))


def architecture() -> str:
    """Debian's name of this machine's architecture, which the package is for."""
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def agents() -> str:
    """The units that are enabled and started: those with an [Install] section, templates apart."""
    units = sorted((CHECKOUT / "systemd").glob("magbay-*.*"))
    return " ".join(u.name for u in units if u.is_file() and "@" not in u.name and "\n[Install]" in u.read_text())


def _control(root: Path) -> None:
    """Fill DEBIAN/: control, maintainer scripts, conffiles, checksums. All other files are in place."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    size = sum((p.stat().st_size + 1023) // 1024 for p in files)
    target = root / "DEBIAN"
    target.mkdir()
    head, _, rest = (DEBIAN / "control").read_text().partition("\n")
    facts = f"Version: {version()}\nArchitecture: {architecture()}\nInstalled-Size: {size}"
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    (target / "control").write_text(f"{head}\n{facts}\n{rest}".replace("@LIBC@", libc.removeprefix("glibc ")))
    names = [p.relative_to(root) for p in files]
    sums = (f"{hashlib.md5((root / n).read_bytes(), usedforsecurity=False).hexdigest()}  {n}\n" for n in names)
    (target / "md5sums").write_text("".join(sums))
    (target / "conffiles").write_text("".join(f"/{n}\n" for n in names if n.parts[0] == "etc"))
    for name in ("postinst", "prerm", "postrm"):
        (target / name).write_text((DEBIAN / name).read_text().replace("@UNITS@", agents()))
        (target / name).chmod(0o755)


def _stage(root: Path, epoch: int, log: Path) -> None:
    """Lay the whole package out below *root*, with fixed modes and times."""
    for source, name, mode in contents():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(mode)
    compiler, name = QUICK
    run([CHECKOUT / compiler, root / name], log=log)
    (root / name).chmod(0o755)
    changelog = root / "usr/share/doc/magbay/changelog.Debian.gz"
    changelog.write_bytes(gzip.compress((DEBIAN / "changelog").read_bytes(), 9, mtime=0))
    changelog.chmod(0o644)
    _control(root)
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
        elif path.parent.name == "DEBIAN" and path.name in ("control", "md5sums", "conffiles"):
            path.chmod(0o644)
        os.utime(path, (epoch, epoch))


def build(directory: Path, log: Path) -> Path:
    """Build the package into *directory*; return its path."""
    epoch = source_date_epoch()
    directory.mkdir(parents=True, exist_ok=True)
    deb = directory / f"magbay_{version()}_{architecture()}.deb"
    with step("package"), tempfile.TemporaryDirectory(dir=directory) as scratch:
        root = Path(scratch, "magbay")
        root.mkdir()
        _stage(root, epoch, log)
        new = Path(scratch, deb.name)
        command: list[str | Path] = [
            "dpkg-deb",
            "--root-owner-group",
            "--uniform-compression",
            "-Zxz",
            "--build",
            root,
            new,
        ]
        run(command, log=log, env={"SOURCE_DATE_EPOCH": str(epoch)})
        new.replace(deb)
    return deb
