"""The key file that opens the LUKS containers: 4096 bytes of the kernel's random generator, for root only.

It has two forms. *Plain* is the file itself. *Sealed* is a credential of systemd beside it (`….cred`), encrypted for
this machine by systemd-creds(1); it is of no use on another. While a rotation is unfinished there is a second key, the
*previous* one (`….previous`), in either form.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from appliance.errors import MagbayError, NotFoundError
from appliance.host.commands import attempt, run
from appliance.host.files import make_directory, sync_directory, write_all
from appliance.keys.secret import Secret

KEY_BYTES = 4096
_LEAST_BYTES = 32


class Form(Enum):
    """How a key is kept."""

    PLAIN = "plain"
    SEALED = "sealed"


def sealed(path: Path) -> Path:
    """Where the sealed form of the key file *path* is or would be."""
    return path.with_name(path.name + ".cred")


def previous(path: Path) -> Path:
    """Where the previous key is while a rotation is unfinished."""
    return path.with_name(path.name + ".previous")


def form(path: Path) -> Form | None:
    """In which form the key *path* is there; None when in neither."""
    if path.exists():
        return Form.PLAIN
    return Form.SEALED if sealed(path).exists() else None


def generate() -> Secret:
    """A new key."""
    return Secret(os.urandom(KEY_BYTES))


def ensure(path: Path) -> bool:
    """Make the key file *path* unless the key exists; whether it was made. Raises `MagbayError` for an unusable one."""
    kept = form(path)
    if kept is Form.PLAIN:
        check(path)
    if kept is not None:
        return False
    if form(previous(path)) is not None:
        raise MagbayError(
            f"the key file {path} is missing, though the previous one is there",
            hint="Put it back from its copy ('magbay key restore'); a new one would not open the magazines.",
        )
    make_directory(path.parent, mode=0o700)
    store(path, generate(), Form.PLAIN)
    return True


def store(path: Path, key: Secret, kept: Form, with_key: str = "auto") -> None:
    """Write *key* durably as *path* in the form *kept*, replacing an older one; read for nobody but the owner.

    *with_key*: what systemd-creds seals with (`host`, `tpm2`, `host+tpm2`, `auto`). Raises `MagbayError`, `OSError`.
    """
    target = path if kept is Form.PLAIN else sealed(path)
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=path.parent)
    fresh = Path(name)
    try:
        if kept is Form.PLAIN:
            write_all(fd, key.reveal())
        else:
            _seal_into(key, fresh, with_key)
            if unseal(fresh) != key:
                raise MagbayError(f"{target} does not give back the key that was sealed: nothing was changed")
        os.close(fd)
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        os.fchmod(fd, 0o400)
        os.fsync(fd)
        fresh.replace(target)
    finally:
        os.close(fd)
        if fresh.exists():
            erase(fresh)
    sync_directory(path.parent)


def read(path: Path) -> Secret:
    """The key *path*, in whatever form it is there. Raises `NotFoundError`, `MagbayError`, `PermissionError`."""
    kept = form(path)
    if kept is None:
        raise NotFoundError(
            f"there is no key file {path}",
            hint="Put it back from its copy ('magbay key restore'), or 'magbay key create' for the first one.",
        )
    if kept is Form.SEALED:
        return unseal(sealed(path))
    check(path)
    return Secret(path.read_bytes())


@contextlib.contextmanager
def passed(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The key *path* for one tool: the word that it takes as key file, and the descriptors that it inherits."""
    if form(path) is Form.SEALED:
        with read(path).descriptor() as descriptor:
            yield f"/dev/fd/{descriptor}", (descriptor,)
    else:
        yield str(path), ()


def erase(path: Path) -> None:
    """Overwrite and remove the file *path*, durably. One that has a second name only loses this one."""
    facts = path.lstat()
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
        path.chmod(0o600)
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(fd, bytes(facts.st_size))
            os.fsync(fd)
        finally:
            os.close(fd)
    path.unlink()
    sync_directory(path.parent)


def drop(path: Path) -> None:
    """Erase the key *path* in both forms."""
    for kept in (path, sealed(path)):
        if kept.exists():
            erase(kept)


def check(path: Path) -> None:
    """Refuse a key file that is empty, short, or readable for others. Raises `MagbayError`."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or not _LEAST_BYTES <= facts.st_size <= KEY_BYTES:
        raise MagbayError(
            f"key file {path} is damaged: {facts.st_size} bytes",
            hint="Restore it from its copy; do not make a new one.",
        )
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise MagbayError(f"key file {path} can be read by others than its owner", hint=f"chmod 0400 {path}")


def _seal_into(key: Secret, target: Path, with_key: str) -> None:
    # No name is sealed in, so that a rotation can rename the file.
    with key.descriptor() as descriptor:
        words = ["systemd-creds", "encrypt", "--name=", f"--with-key={with_key}", f"/dev/fd/{descriptor}", str(target)]
        run(
            words,
            "sealing the key",
            descriptors=[descriptor],
            hint="'--with host' seals with a secret of this machine, where there is no TPM.",
        )


def unseal(path: Path) -> Secret:
    """The key in the sealed file *path*. Raises `MagbayError`."""
    words = ["systemd-creds", "decrypt", "--name=", "--transcode=base64", str(path), "-"]
    status, output, complaint = attempt(words, f"unsealing {path}")
    if status != 0:
        # The output may hold part of the key; only the complaint is told.
        told = (complaint.strip() or f"exit status {status}").splitlines()[-1]
        raise MagbayError(
            f"the sealed key {path} cannot be opened: {told}",
            hint="It opens on the machine that sealed it only; 'magbay key restore' takes the key from its sheet.",
        )
    return Secret(base64.b64decode(output))
