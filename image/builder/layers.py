"""The layers of an image, each kept in the cache under a key of what it is made from.

* `tools-KEY`: a Debian 13 tree with mkosi in it, made by mmdebstrap;
* `base-KEY`: mkosi's cache of everything but the package magbay;
* `image-KEY.raw`: the disk image, its manifest beside it.

Every layer is built under another name and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from builder import package
from builder.common import IMAGE, BuildError, cache_directory, hash_of, lock, read_list, run, say, step

MKOSI = IMAGE / "mkosi"
SOURCES = MKOSI / "mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources"
TOOLS_PACKAGES = IMAGE / "tools-packages"
# How many of each are kept. Tools trees have a companion directory, which is nothing but a symbolic link.
KEEP = {"image-*.raw": 4, "deb-*": 4, "base-*": 2, "tools-*[0-9a-f]": 2}


@dataclass(frozen=True)
class Keys:
    """Keys of the layers and of the package that goes into the last one."""

    tools: str
    base: str
    package: str
    image: str


def keys() -> Keys:
    """Computed from the files of the checkout; nothing is built."""
    tools = hash_of(SOURCES, TOOLS_PACKAGES)
    base_inputs = (MKOSI / "mkosi.conf", MKOSI / "mkosi.prepare", MKOSI / "mkosi.skeleton", SOURCES)
    base = hash_of(tools, *base_inputs, " ".join(package.depends()))
    deb = package.key()
    return Keys(tools, base, deb, hash_of(base, deb, MKOSI, Path(__file__)))


def image_path(key: str) -> Path:
    """Where the image with *key* is or would be."""
    return cache_directory() / f"image-{key}.raw"


def deb_directory(key: str) -> Path:
    """Where the package with *key* is or would be."""
    return cache_directory() / f"deb-{key}"


def build_package(log: Path) -> Path:
    """The package, from the cache or built."""
    for _ in range(5):
        key = package.key()
        directory = deb_directory(key)
        found = sorted(directory.glob("*.deb"))
        if found:
            return found[0]
        deb = package.build(directory, log)
        if package.key() == key:
            return deb
        # Somebody saved a file while it was packed.
        shutil.rmtree(directory)
    raise BuildError("The checkout changes all the time; the package cannot be built.")


def _tools(key: str, log: Path) -> Path:
    tree = cache_directory() / f"tools-{key}"
    if tree.exists():
        return tree
    new = tree.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    with step("tools tree (Debian 13 with mkosi)"):
        include = ",".join(read_list(TOOLS_PACKAGES))
        options = ["--variant=apt", "--format=directory", '--aptopt=Apt::Install-Recommends "0"']
        run(["mmdebstrap", *options, f"--include={include}", "trixie", new, SOURCES], log=log, progress="I:")
        new.rename(tree)
    return tree


def _base_epoch(base: Path) -> int:
    """Time of the base layer, fixed when it is first built: no file in the image is younger."""
    file = base / "epoch"
    if not file.exists():
        base.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{int(time.time())}\n")
    return int(file.read_text())


def _mkosi(tools: Path, base: Path, deb: Path, output: Path, log: Path) -> None:
    cache = cache_directory()
    library = cache / f"{tools.name}-lib"
    library.mkdir(exist_ok=True)
    link = library / "mkosi"
    if not link.exists():
        link.symlink_to(tools / "usr/lib/python3/dist-packages/mkosi")
    for name in ("packages", "work"):
        (cache / name).mkdir(exist_ok=True)
    epoch = max(_base_epoch(base), package.source_date_epoch())
    settings = [
        f"--directory={MKOSI}",
        f"--tools-tree={tools}",
        f"--cache-directory={base}",
        f"--package-cache-dir={cache / 'packages'}",
        f"--workspace-directory={cache / 'work'}",
        f"--output-directory={output}",
        f"--volatile-package-directory={deb.parent}",
        f"--source-date-epoch={epoch}",
        *(f"--package={name}" for name in package.depends()),
    ]
    # mkosi runs with the interpreter of this machine and finds everything else in the tools tree.
    run(
        ["/usr/bin/python3", "-m", "mkosi", *settings, "build"],
        log=log,
        env={"PYTHONPATH": str(library)},
        progress="‣",
    )


def _prune(cache: Path) -> None:
    """Keep the newest of everything only. A machine that runs from a deleted image keeps running."""
    for pattern, keep in KEEP.items():
        found = sorted(cache.glob(pattern), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in found[keep:]:
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
                old.with_suffix(".manifest").unlink(missing_ok=True)


def build_image(log: Path, *, force: bool = False) -> Path:
    """The image of this checkout, from the cache or built; with *force* its last layer is built anew.

    Raises BuildError when it cannot be built here.
    """
    with lock("build.lock"):
        wanted = keys()
        path = image_path(wanted.image)
        if path.exists() and not force:
            os.utime(path)
            return path
        if os.geteuid() != 0:
            raise BuildError("Building the image needs root: run it with sudo.")
        deb = build_package(log)
        tools = _tools(wanted.tools, log)
        base = cache_directory() / f"base-{wanted.base}"
        fresh = not base.exists()
        name = "image (with the base system, some minutes)" if fresh else "image"
        with step(name), tempfile.TemporaryDirectory(dir=cache_directory(), prefix="output-") as output:
            _mkosi(tools, base, deb, Path(output), log)
            Path(output, "magbay.manifest").replace(path.with_suffix(".manifest"))
            Path(output, "magbay.raw").replace(path)
        for layer in (tools, base):
            os.utime(layer)
        _prune(cache_directory())
        say(f"{path} ({path.stat().st_blocks * 512 >> 20} MiB on disk)")
        return path
